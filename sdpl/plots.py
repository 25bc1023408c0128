"""Pictures: attention over photos (paper, figures 3 and 9), a photo beside its best scores (figure 6), latencies."""

import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdpl.errors import UserError
from sdpl.files import replace_file
from sdpl.fonts import written
from sdpl.install import install_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pyplot() -> ModuleType:
    """matplotlib's pyplot on a backend that needs no screen."""
    try:
        import matplotlib
    except ImportError:
        raise UserError(f"pictures need matplotlib: {install_line('pictures')}") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG atomically and free the figure."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """The photo in grey under the heat map of its attention [h,w].

    The colours span 0 to the largest attention, but at least three times the mean, so that a map without a preference
    looks dark, not bright all over.
    """
    brightest = max(attention.max(), 3 / attention.size)
    heat = Image.fromarray(attention.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR)
    colours = pyplot().get_cmap("inferno")(np.asarray(heat) / brightest, bytes=True)[..., :3]
    return Image.blend(image.convert("L").convert("RGB"), Image.fromarray(np.ascontiguousarray(colours)), 0.6)


def peak(attention: np.ndarray) -> float:
    """The largest attention of a map [h,w] as a multiple of its mean."""
    return float(attention.max() * attention.size)


def draw_attention(image: Image.Image, maps: list[tuple[str, float, np.ndarray]], path: Path) -> None:
    """One row: the photo, then for each (category, score, attention [h,w]) the photo under its heat map, whose title
    names the largest attention as a multiple of the mean."""
    plot = pyplot()
    with written(name for name, _, _ in maps) as label:
        figure, axes = plot.subplots(1, 1 + len(maps), figsize=(2.6 * (1 + len(maps)), 3.0), squeeze=False)
        axes[0, 0].imshow(image)
        axes[0, 0].set_title("image", fontsize=9)
        for axis, (category, score, attention) in zip(axes[0, 1:], maps, strict=True):
            axis.imshow(overlay(image, attention))
            axis.set_title(f"{label(category)}  {score:.2f}\npeak {peak(attention):.1f} x mean", fontsize=9)
        for axis in axes[0]:
            axis.set_axis_off()
        save_figure(figure, path)


def draw_latencies(result: dict[str, Any], path: Path) -> None:
    """Throughput over latency, a line per side and boundary, a point per batch size; hollow where it is not stable."""
    plot = pyplot()
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure, axis = plot.subplots(figsize=(6.4, 4.2))
    rows = [row for row in result["latencies"] if row["callers"] == 1]
    for side, boundary in dict.fromkeys((row["side"], row["boundary"]) for row in rows):
        line = [row for row in rows if (row["side"], row["boundary"]) == (side, boundary)]
        name = f"{side}, {boundary}".replace("$", r"\$")
        (drawn,) = axis.plot([r["p50_ms"] for r in line], [r["images_per_s"] for r in line], "-", label=name)
        for row in line:
            colour, fill = drawn.get_color(), drawn.get_color() if row["stable"] else "white"
            axis.plot(row["p50_ms"], row["images_per_s"], "o", color=colour, markerfacecolor=fill)
            axis.annotate(str(row["batch"]), (row["p50_ms"], row["images_per_s"]), fontsize=7, xytext=(4, 4),
                          textcoords="offset points")  # fmt: skip
    axis.set(xscale="log", yscale="log", ylabel="images per second")
    axis.set_xlabel("p50 latency of a batch (ms); numbers: batch size; hollow: not stable")
    axis.set_title(result["target"], fontsize=10)
    for ticks, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        ratio = limits[1] / limits[0]  # decades alone label a wide axis; a narrow one needs steps between them
        steps = (1.0,) if ratio > 300 else (1.0, 2.0, 5.0)
        ticks.set_major_locator(LogLocator(subs=steps) if ratio > 8 else MaxNLocator(5))
        ticks.set_major_formatter("{x:g}")
        ticks.set_minor_formatter(NullFormatter())
    axis.tick_params(which="both", labelsize=8)
    axis.grid(True, which="major", alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save_figure(figure, path)


def draw_recognition(
    image: Image.Image, best: list[tuple[str, float]], labels: set[str], maps: list[tuple[str, np.ndarray]]
) -> Image.Image:
    """The photo, bars of its best (category, score) pairs, and under them heat maps of (category, attention [h,w]).

    A bar is full where the category is among `labels`, light where its score is below its threshold.
    """
    pyplot()  # says that matplotlib is missing
    with written([*(name for name, _ in best), *(name for name, _ in maps)]) as label:
        return _drawn(image, best, labels, maps, label)


def _drawn(
    image: Image.Image,
    best: list[tuple[str, float]],
    labels: set[str],
    maps: list[tuple[str, np.ndarray]],
    label: Callable[[str], str],
) -> Image.Image:
    plot = pyplot()
    columns = max(2, len(maps))
    figure = plot.figure(figsize=(8, 3.2 if not maps else 3.2 + 8 / columns), layout="constrained")
    try:
        upper, *lower = figure.subfigures(2, 1, height_ratios=(3.2, 8 / columns)) if maps else [figure]
        photo, bars = upper.subplots(1, 2)
        photo.imshow(image)
        photo.set_axis_off()
        names, scores = [name[:32] for name, _ in best], [score for _, score in best]
        shades = ["tab:blue" if name in labels else "lightsteelblue" for name, _ in best]
        drawn = bars.barh(range(len(best)), scores, color=shades)
        bars.bar_label(
            drawn, labels=[f"{score:.2f}" if score >= 0.01 else f"{score:.0e}" for score in scores], padding=3
        )
        bars.set_yticks(range(len(best)), [label(name) for name in names])
        bars.set(xlim=(0, 1.15), xticks=(0, 0.5, 1), xlabel="score")
        bars.invert_yaxis()
        bars.spines[["top", "right"]].set_visible(False)
        for part in lower:
            for axis, (name, attention) in zip(part.subplots(1, columns, squeeze=False)[0], maps, strict=False):
                axis.imshow(overlay(image, attention))
                axis.set_title(label(name[:24]) + f"\npeak {peak(attention):.1f} x mean", fontsize=8)
            for axis in part.axes:
                axis.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
    finally:
        plot.close(figure)
    with Image.open(buffer) as drawing:
        return drawing.convert("RGB")
