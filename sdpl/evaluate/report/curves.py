"""The figures of a training run. Colours come from matplotlib's settings, as in `sdpl.evaluate.report.figures`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from sdpl.data.images import evenly_taken
from sdpl.evaluate.report.page import counting_ticks, legend_beside, short, size
from sdpl.evaluate.training import AP, Epoch
from sdpl.plots import pyplot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 300  # of a curve; the eye sees no more
FAINT = (100, 60)  # categories without a name, evenly spread over the ranking, and points of each
NAMED = 4  # worst and best categories that the legend names
MOST_DOTS = 500


def loss_and_rate(epochs: Sequence[Epoch], kept: int | None = None) -> "Figure":
    """Mean training loss of each epoch, and below it the learning rate. kept: the epoch to mark."""
    figure: Figure
    figure, (loss, rate) = pyplot().subplots(
        2, 1, figsize=size(5.4, 4.2), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    chosen = _thinned(epochs)
    x = [epoch.epoch for epoch in chosen]
    look = _look(chosen)
    loss.plot(x, [epoch.loss for epoch in chosen], **look, color="C0")
    rate.plot(x, [epoch.lr for epoch in chosen], **look, drawstyle="steps-mid", color="C1")
    loss.set_ylabel("training loss", fontsize=9)
    rate.set_ylabel("learning rate", fontsize=9)
    rate.set_ylim(bottom=0)
    for axis in (loss, rate):
        _finish(axis, kept)
    _epochs(rate, epochs)
    return figure


def mean_ap_over_epochs(epochs: Sequence[Epoch], kept: int | None = None, error: float = np.nan) -> "Figure":
    """Validation mAP in percent of each epoch, in a band of its standard error in points."""
    figure: Figure
    figure, axis = pyplot().subplots(figsize=size(5.4, 4.2), layout="constrained")
    chosen = _thinned(epochs)
    x, y = [epoch.epoch for epoch in chosen], np.array([epoch.mAP for epoch in chosen])
    if np.isfinite(error):
        low, high = np.clip(y - error, 0, 100), np.clip(y + error, 0, 100)
        axis.fill_between(x, low, high, color="C0", alpha=0.18, linewidth=0, label="± 1 standard error")
    axis.plot(x, y, **_look(chosen), color="C0", label="mAP")
    axis.set_ylim(0, 100)
    axis.set_ylabel("validation mAP (%)", fontsize=9)
    _finish(axis, kept)
    _epochs(axis, epochs)
    axis.legend(fontsize=8, frameon=False)
    return figure


def ap_over_epochs(epochs: Sequence[Epoch], ap: Sequence[AP], kept: AP) -> "Figure":
    """AP in percent of each category over the epochs: all faintly, and by name those that are the best and the worst
    in the kept epoch, `kept`."""
    figure: Figure
    figure, axis = pyplot().subplots(figsize=size(7.6, 4.4), layout="constrained")
    known = {name: value for name, value in kept.items() if value is not None}
    ranked = sorted(known, key=lambda name: known[name])
    named = ranked if len(ranked) <= 2 * NAMED else ranked[:NAMED] + ranked[-NAMED:]
    pairs = list(zip(epochs, ap, strict=True))
    x = np.array([epoch.epoch for epoch, _ in pairs])

    def curve(name: str, points: int) -> tuple[np.ndarray, np.ndarray]:
        at = evenly_taken(len(pairs), points)
        return x[at], np.array([np.nan if (v := pairs[i][1].get(name)) is None else v for i in at])

    for name in ranked[:: max(1, len(ranked) // FAINT[0])]:
        axis.plot(*curve(name, FAINT[1]), linewidth=0.5, alpha=0.25, color="C7")
    for i, name in reversed(list(enumerate(named))):
        look = {**_look(epochs), "linewidth": 1.4, "linestyle": "--" if i < len(named) / 2 else "-", "color": f"C{i}"}
        axis.plot(*curve(name, POINTS), **look, label=f"{short(name)} ({known[name]:.0f})")
    axis.set_ylim(0, 102)
    axis.set_ylabel("validation AP (%)", fontsize=9)
    _finish(axis, None)
    _epochs(axis, epochs)
    if named:
        legend_beside(axis, "category (AP)")
    return figure


def ap_over_positives(ap: AP, positives: Mapping[str, int]) -> "Figure":
    """AP in percent of each category over how many positives it has to learn from."""
    figure: Figure
    figure, axis = pyplot().subplots(figsize=size(5.4, 3.6), layout="constrained")
    names = [name for name, value in ap.items() if value is not None]
    names = [names[i] for i in evenly_taken(len(names), MOST_DOTS)]
    counts = np.array([positives[name] for name in names])
    axis.plot(np.maximum(counts, 0.5), [ap[name] for name in names], "o", markersize=4, alpha=0.7, color="C0")
    axis.set_xscale("log")
    low, high = (max(0.4, counts.min() / 2), 2 * max(1, counts.max())) if len(counts) else (0.4, 10)
    axis.set_xlim(low, high)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "0" if value == 0.5 else "")
    zero = [0.5] if low <= 0.5 and (counts == 0).any() else []
    axis.set_xticks([*zero, *counting_ticks(low, high)])
    axis.minorticks_off()
    axis.set_ylim(0, 102)
    axis.set_xlabel("known training positives", fontsize=9)
    axis.set_ylabel("validation AP (%)", fontsize=9)
    _finish(axis, None)
    return figure


def _finish(axis: "Axes", kept: int | None) -> None:
    if kept is not None:
        axis.axvline(kept, color="C3", linewidth=1, linestyle=":")
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)


def _epochs(axis: "Axes", epochs: Sequence[Epoch]) -> None:
    """An axis of whole epochs."""
    axis.set_xlabel("epoch", fontsize=9)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    first, last = epochs[0].epoch, epochs[-1].epoch
    room = max(0.5, (last - first) / 40)
    axis.set_xlim(first - room, last + room)


def _look(epochs: Sequence[Epoch]) -> dict[str, object]:
    """Of a curve: its points are marked while they are few, so that one alone is seen."""
    return {"marker": "o" if len(epochs) <= 30 else "", "markersize": 3.5, "linewidth": 1.6}


def _thinned(epochs: Sequence[Epoch]) -> list[Epoch]:
    return [epochs[i] for i in evenly_taken(len(epochs), POINTS)]
