"""The figures of an evaluation: average precision per category, precision-recall curves, calibration; and of data.

They take their colours from matplotlib's settings, so that one function draws for a light and for a dark page.
"""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator, NullFormatter
from sklearn.metrics import precision_recall_curve

from sdpl.data.images import LabelCounts, LabelledImages, evenly_taken
from sdpl.evaluate.calibration import Calibration
from sdpl.evaluate.report.page import counting_ticks, is_narrow, legend_beside, short, size
from sdpl.plots import pyplot
from sdpl.text import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BARS = 80  # categories; of more, the worst and the best halves of this
POINTS = 200  # of a curve; the eye sees no more
FAINT = (60, 30)  # curves without a name, evenly spread over the ranking, and points of each: they show the spread
NAMED = 4  # worst and best categories that a legend names


def ap_bars(aps: dict[str, dict[str, float | None]], chance: dict[str, float] | None = None) -> "Figure":
    """AP in percent of each category, the best first, one bar per model: {"model": {"category": AP}} (figure 5).

    chance: the AP of random scores in percent, drawn as a mark. Categories without an AP are left out.
    """
    known = {name: ap for name, ap in next(iter(aps.values())).items() if ap is not None}
    names = sorted(known, key=lambda name: -known[name])
    if len(names) > MOST_BARS:
        names = names[: MOST_BARS // 2] + names[-MOST_BARS // 2 :]
    columns = np.array_split(np.array(names, dtype=object), 1 if len(names) <= 40 or is_narrow() else 2)
    height = 0.17 * len(aps) ** 0.5 * len(columns[0]) + 0.9
    figure: Figure
    figure, axes = pyplot().subplots(
        1, len(columns), figsize=size(8, height), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, column in zip(axes[0], columns, strict=True):
        _ap_column(axis, list(column), aps, chance)
    if len(aps) > 1:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside upper center", ncols=len(aps))
    return figure


def _ap_column(
    axis: "Axes", names: list[str], aps: dict[str, dict[str, float | None]], chance: dict[str, float] | None
) -> None:
    thickness = 0.8 / len(aps)
    rows = np.arange(len(names))
    for i, (model, values) in enumerate(aps.items()):
        offset = (i - (len(aps) - 1) / 2) * thickness
        axis.barh(rows + offset, [values[n] or 0 for n in names], thickness, label=shortened(model, 60), color=f"C{i}")
    if chance is not None:
        axis.plot([chance[n] for n in names], rows, "|", markersize=6, markeredgewidth=1.5, color=_text_colour())
    axis.set_yticks(rows, [short(name) for name in names], fontsize=7)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 100)
    axis.set_xlabel("AP (%)", fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)


def precision_recall(scores: np.ndarray, data: LabelledImages, ap: dict[str, float | None]) -> "Figure":
    """Precision over recall: all known labels together, every category faintly, and the worst and the best by name."""
    figure: Figure
    figure, axis = pyplot().subplots(figsize=size(6.6, 4.4), layout="constrained")
    known = {name: value for name, value in ap.items() if value is not None}
    ranked = sorted(known, key=lambda name: known[name])
    named = ranked if len(ranked) <= 2 * NAMED else ranked[:NAMED] + ranked[-NAMED:]
    for name in ranked[:: max(1, len(ranked) // FAINT[0])] if not is_narrow() else ():
        c = data.categories.index(name)
        curve = _curve(scores[:, c], data.labels[:, c], FAINT[1])
        axis.plot(*curve, drawstyle="steps-pre", linewidth=0.5, alpha=0.25, color="C7")
    alone = len(named) == 1  # its curve is also that of all labels together
    for i, name in enumerate(named):
        c = data.categories.index(name)
        look = {"linestyle": "--" if i < len(named) / 2 else "-", "linewidth": 1.2, "color": f"C{i}"}
        if alone:
            look = {"linewidth": 2.6, "color": "C0"}
        curve = _curve(scores[:, c], data.labels[:, c])
        axis.plot(*curve, drawstyle="steps-pre", label=f"{short(name)} ({known[name]:.0f})", **look)
    if not alone:
        overall = _curve(scores.ravel(), data.labels.ravel())
        axis.plot(*overall, drawstyle="steps-pre", linewidth=2.6, label="all labels", color=_text_colour())
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("recall", fontsize=9)
    axis.set_ylabel("precision", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    legend_beside(axis, "category (AP)")
    return figure


def _curve(scores: np.ndarray, labels: np.ndarray, points: int = POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Recall, growing, and the precision with which it is reached: the steps whose area is the AP, at most `points`."""
    known = labels != 0
    precision, recall, _ = precision_recall_curve(labels[known] > 0, scores[known])
    recall, first = np.unique(recall[::-1], return_index=True)
    chosen = np.unique(np.linspace(0, len(recall) - 1, points).astype(int))
    return recall[chosen], precision[::-1][first][chosen]


def calibration_curve(calibration: Calibration) -> "Figure":
    """How often labels of a score are present, over that score, and how many there are."""
    figure: Figure
    figure, (curve, counts) = pyplot().subplots(
        2, 1, figsize=size(4.6, 4.4), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    filled = calibration.count > 0
    curve.plot([0, 1], [0, 1], "--", linewidth=1, color="C7", label="perfect")
    curve.plot(
        calibration.mean_score[filled],
        calibration.frequency[filled],
        "o-",
        markersize=4,
        color="C0",
        label=f"model, error {100 * calibration.error:.1f} %",
    )
    curve.set_ylabel("fraction present", fontsize=9)
    curve.set_xlim(0, 1)
    curve.set_ylim(0, 1.02)
    curve.legend(fontsize=8, loc="upper left", frameon=False)
    bins = len(calibration.count)
    counts.bar((np.arange(bins) + 0.5) / bins, calibration.count, 0.9 / bins, color="C0")
    counts.set_yscale("log")
    counts.set_ylim(0.8, 1.3 * max(1, calibration.count.max()))  # so that at least one power of ten has its number
    counts.yaxis.set_major_formatter("{x:,.0f}")
    counts.yaxis.set_minor_formatter(
        NullFormatter()
    )  # matplotlib's own writes mathematics, which these pages do not parse
    counts.set_ylabel("known labels", fontsize=9)
    counts.set_xlabel("score", fontsize=9)
    for axis in (curve, counts):
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    return figure


def positives_by_category(counts: dict[str, list[LabelCounts]]) -> "Figure":
    """How many known positives each category has, the most first: a curve for each split, {"split": counts}."""
    figure: Figure
    figure, axis = pyplot().subplots(figsize=size(5.4, 3.4), layout="constrained")
    for i, (split, rows) in enumerate(counts.items()):
        ranked = sorted((row.positive for row in rows), reverse=True)
        at = evenly_taken(len(ranked), POINTS)
        marker = "o" if len(ranked) <= 30 else ""
        x = [rank + 1 for rank in at]
        axis.plot(x, [ranked[rank] for rank in at], marker=marker, markersize=3.5, color=f"C{i}", label=split)
    axis.set_yscale("symlog", linthresh=1)  # linear up to 1, so that 0 has its place
    most = max((row.positive for rows in counts.values() for row in rows), default=0)
    axis.set_ylim(0, 1.1 * max(most, 1))
    axis.set_yticks([0, *counting_ticks(1, most)])
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("category, by rank", fontsize=9)
    axis.set_ylabel("known positives", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    figure.legend(fontsize=7, loc="outside lower center", frameon=False)
    return figure


def _text_colour() -> str:
    return str(pyplot().rcParams["text.color"])
