"""The report of an evaluation: everything of it, on one page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdpl.data.images import LabelledImages, count_labels
from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.evaluation import Evaluated, Evaluation
from sdpl.evaluate.report.cases import NAME, ScoredModel, error_cards, sample_cards, sample_rows, worst_errors
from sdpl.evaluate.report.curves import loss_and_rate, mean_ap_over_epochs
from sdpl.evaluate.report.figures import ap_bars, calibration_curve, precision_recall
from sdpl.evaluate.report.page import Figure, figure, write_page
from sdpl.evaluate.training import Epoch
from sdpl.text import shortened

MOST_ROWS = 800  # of the table of categories, within the page's size: half of them the worst, half the best
MOST_COUNTED = 300  # categories for which the page can count again at another threshold, within its size


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
    scored: ScoredModel | None = None


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
    training: Sequence[Epoch] = (),
) -> None:
    """Write the report of `result`, the evaluation of `model` with `scores` [N,C] on `data`, atomically.

    others: models that figure 5's bars and figure 6's samples show beside it, with where each of them looked. worst:
    how many false positives, false negatives and samples are shown as pictures; no image more than twice. training: the
    epochs of the run that made the model, where they are known. Unknown labels count nowhere.
    Raises UserError when the file cannot be written.
    """
    samples = sample_rows(data, worst)
    false_positives, false_negatives = worst_errors(scores, data.labels, model.thresholds, worst, samples)
    rows = category_rows(scores, data, model.thresholds, result)
    chance = {row.category: 100 * row.positive / row.known for row in rows if row.known}
    aps = {model_name: result.ap, **{other.name: other.result.ap for other in others}}
    scored = [other.scored for other in others if other.scored is not None]
    write_page(
        path,
        "evaluation.html",
        counts=threshold_counts(scores, data.labels) if len(rows) <= MOST_COUNTED else None,
        random=float(np.mean(list(chances))) if (chances := [chance[r.category] for r in rows if r.positive]) else None,
        model=model_name,
        data=data_name,
        result=result,
        rows=shown_rows(rows),
        categories=len(rows),
        thresholds=_thresholds(model.thresholds),
        figures={
            "ap": figure(lambda: ap_bars(aps, chance), "average precision of each category"),
            "curves": figure(lambda: precision_recall(scores, data, result.ap), "precision-recall curves"),
            **_training_figures(training),
            "calibration": figure(lambda: calibration_curve(calibration(scores, data.labels)), "calibration curve"),
        },
        errors={
            "False positives": error_cards(false_positives, model, data),
            "False negatives": error_cards(false_negatives, model, data),
        },
        samples=sample_cards([ScoredModel(model_name, model, scores), *scored], data, samples),
        others=others,
        several=bool(scored),
        models=[(model_name, result), *((other.name, other.result) for other in others)],
        known=float((data.labels != 0).mean()),
    )


def shown_rows(rows: Sequence[CategoryRow]) -> list[CategoryRow]:
    """All rows, or of more than `MOST_ROWS` those with the lowest and the highest AP; in their order."""
    chosen: Sequence[int] = range(len(rows))
    if len(rows) > MOST_ROWS:
        ranked = sorted(chosen, key=lambda i: (rows[i].ap is None, rows[i].ap or 0))  # those without an AP last
        defined = max(MOST_ROWS, sum(row.ap is not None for row in rows))
        half = MOST_ROWS // 2
        chosen = sorted([*ranked[:half], *ranked[defined - half : defined]])
    return [replace(rows[i], category=shortened(rows[i].category, NAME)) for i in chosen]


def _training_figures(epochs: Sequence[Epoch]) -> dict[str, Figure]:
    if not epochs:
        return {}
    return {
        "loss": figure(lambda: loss_and_rate(epochs), "training loss and learning rate over the epochs"),
        "mAP": figure(lambda: mean_ap_over_epochs(epochs), "validation mAP over the epochs of training"),
    }


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


def _thresholds(thresholds: np.ndarray) -> str:
    low, high = thresholds.min(), thresholds.max()
    return f"{low:g} for every category" if low == high else f"{low:.2f} to {high:.2f}, one per category"
