"""The report: everything of an evaluation in one HTML file that needs nothing beside it and no network."""

import base64
import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from markupsafe import Markup

from sdpl import __version__
from sdpl.data.images import LabelledImages, count_labels
from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.evaluation import Evaluated, Evaluation
from sdpl.evaluate.report.cases import Scored, error_cards, sample_cards, sample_rows, worst_errors
from sdpl.evaluate.report.figures import ap_bars, calibration_curve, precision_recall
from sdpl.files import replace_file
from sdpl.plots import pyplot

if TYPE_CHECKING:
    import matplotlib.figure

MOST_COUNTED = 300  # categories for which the page can count again at another threshold, within its size
THEMES = {
    "light": {
        "text": "#1c2430",
        "muted": "#c9d0d8",
        "cycle": "#2f6fb5 #e08a1e #3a9a5b #c8453b #7d5ab5 #8a6a52 #c65f9c #7a828c",
    },
    "dark": {
        "text": "#e4e8ee",
        "muted": "#4a5360",
        "cycle": "#6aa5e8 #f0a94a #66c286 #ef7a70 #ab8ee6 #b8967c #e88fc2 #9aa3ae",
    },
}


@dataclass(frozen=True)
class Figure:
    """One figure twice, as SVG in data URIs: for a light and for a dark page."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class CategoryRow:
    """One category's labels and metrics, in percent; None where they are undefined."""

    category: str
    known: int
    positive: int
    negative: int
    unknown: int
    ap: float | None
    threshold: float
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class Compared:
    """Another model on the same data: its metrics and, unless only they are known, its scores."""

    name: str
    result: Evaluation
    scored: Scored | None = None


def write_report(
    path: Path,
    model_name: str,
    data_name: str,
    model: Evaluated,
    data: LabelledImages,
    scores: np.ndarray,
    result: Evaluation,
    worst: int,
    others: Sequence[Compared] = (),
) -> None:
    """Write the report of `result`, the evaluation of `model` with `scores` [N,C] on `data`, atomically.

    others: models that figure 5's bars and figure 6's samples show beside it, with where each of them looked. worst:
    how many false positives, false negatives and samples are shown as pictures; no image more than twice. Unknown
    labels count nowhere.
    Raises UserError when the file cannot be written.
    """
    samples = sample_rows(data, worst)
    false_positives, false_negatives = worst_errors(scores, data.labels, model.thresholds, worst, samples)
    rows = category_rows(scores, data, model.thresholds, result)
    chance = {row.category: 100 * row.positive / row.known for row in rows if row.known}
    aps = {model_name: result.ap, **{other.name: other.result.ap for other in others}}
    scored = [other.scored for other in others if other.scored is not None]
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(resources.files("sdpl.evaluate.report").joinpath("template.html").read_text(encoding="utf-8"))
    script = resources.files("sdpl.evaluate.report").joinpath("table.js").read_text(encoding="utf-8")
    text = template.render(
        script=Markup(script),  # ours, and the only one that the page's policy lets run: by its hash
        script_hash=Markup(f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"),
        counts=threshold_counts(scores, data.labels) if len(rows) <= MOST_COUNTED else None,
        random=float(np.mean(list(chances))) if (chances := [chance[r.category] for r in rows if r.positive]) else None,
        model=model_name,
        data=data_name,
        result=result,
        rows=rows,
        thresholds=_thresholds(model.thresholds),
        figures={
            "ap": figure(lambda: ap_bars(aps, chance), "average precision of each category"),
            "curves": figure(lambda: precision_recall(scores, data, result.ap), "precision-recall curves"),
            "calibration": figure(lambda: calibration_curve(calibration(scores, data.labels)), "calibration curve"),
        },
        errors={
            "False positives": error_cards(false_positives, model, data),
            "False negatives": error_cards(false_negatives, model, data),
        },
        samples=sample_cards([Scored(model_name, model, scores), *scored], data, samples),
        others=others,
        several=bool(scored),
        models=[(model_name, result), *((other.name, other.result) for other in others)],
        known=float((data.labels != 0).mean()),
        version=__version__,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def threshold_counts(scores: np.ndarray, labels: np.ndarray) -> list[list[list[int]]]:
    """For each category how many positives, and negatives, score at least 0.00, 0.01 and so on to 1.00: [C,2,101]."""
    cuts = np.arange(101) / 100
    columns = [[scores[labels[:, c] == label, c] for label in (1, -1)] for c in range(labels.shape[1])]
    return [[(np.sort(s)[None] >= cuts[:, None]).sum(axis=1).tolist() for s in pair] for pair in columns]


def category_rows(
    scores: np.ndarray, data: LabelledImages, thresholds: np.ndarray, result: Evaluation
) -> list[CategoryRow]:
    """Each category's counts and metrics, in the order of the categories."""
    said = scores >= thresholds  # [N,C]
    hits = (said & (data.labels > 0)).sum(axis=0)  # [C]
    claims = (said & (data.labels != 0)).sum(axis=0)  # [C]
    return [
        CategoryRow(
            count.category,
            count.known,
            count.positive,
            count.negative,
            count.unknown,
            result.ap[count.category],
            float(thresholds[c]),
            100 * float(hits[c]) / int(claims[c]) if claims[c] else None,
            100 * float(hits[c]) / count.positive if count.positive else None,
            200 * float(hits[c]) / (int(claims[c]) + count.positive) if claims[c] or count.positive else None,
        )
        for c, count in enumerate(count_labels(data))
    ]


def figure(draw: "Callable[[], matplotlib.figure.Figure]", alt: str) -> Figure:
    """What `draw` draws, in both themes."""
    plot, uris = pyplot(), {}
    for name, theme in THEMES.items():
        with plot.rc_context(_settings(theme)), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="Glyph"
            )  # a name's letters are the browser's matter, not its font's
            drawn = draw()
            stream = io.BytesIO()
            drawn.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
            plot.close(drawn)
        uris[name] = f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return Figure(**uris, alt=alt)


def _settings(theme: dict[str, str]) -> dict[str, Any]:
    text, muted = theme["text"], theme["muted"]
    return {
        "axes.prop_cycle": pyplot().cycler(color=theme["cycle"].split()),
        "axes.edgecolor": muted,
        "axes.labelcolor": text,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.color": muted,
        "legend.facecolor": "none",
        "legend.edgecolor": muted,
        "svg.fonttype": "none",  # text stays text: small and sharp
        "svg.hashsalt": "sdpl",
        "text.color": text,
        "text.parse_math": False,  # a category may hold a dollar sign
        "xtick.color": text,
        "ytick.color": text,
    }


def _thresholds(thresholds: np.ndarray) -> str:
    low, high = thresholds.min(), thresholds.max()
    return f"{low:g} for every category" if low == high else f"{low:.2f} to {high:.2f}, one per category"
