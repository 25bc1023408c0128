"""Attention as heat maps over photos: where the model looked for each category (paper, figures 3 and 9)."""

from pathlib import Path

import numpy as np
from PIL import Image

from sdpl.errors import UserError
from sdpl.files import replace_file


def pyplot():
    """matplotlib's pyplot on a backend that needs no screen."""
    try:
        import matplotlib
    except ImportError:
        raise UserError('pictures need matplotlib: pip install "sdpl[pictures]"') from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_figure(figure, path: Path) -> None:
    """Write a PNG atomically and free the figure."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)


def draw_attention(image: Image.Image, maps: list[tuple[str, float, np.ndarray]], path: Path) -> None:
    """One row: the photo, then for each (category, score, attention [h,w]) the photo under its heat map.

    The colours span 0 to the largest attention of each map, which its title names as a multiple of the mean; at
    least three times the mean, so that a map without a preference looks dark, not bright all over.
    """
    plot = pyplot()
    figure, axes = plot.subplots(1, 1 + len(maps), figsize=(2.6 * (1 + len(maps)), 3.0), squeeze=False)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=9)
    for axis, (category, score, attention) in zip(axes[0, 1:], maps, strict=True):
        axis.imshow(image.convert("L").convert("RGB"))
        extent = (0, image.width, image.height, 0)
        brightest = max(attention.max(), 3 / attention.size)
        axis.imshow(
            attention, cmap="inferno", alpha=0.6, extent=extent, interpolation="bilinear", vmin=0, vmax=brightest
        )
        axis.set_title(f"{category}  {score:.2f}\npeak {attention.max() * attention.size:.1f} x mean", fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    save_figure(figure, path)


def draw_ap_bars(aps: dict[str, dict[str, float | None]], path: Path) -> None:
    """Per-category AP in percent, one group of bars per model: {"model": {"category": AP}} (figure 5)."""
    plot = pyplot()
    categories = list(next(iter(aps.values())))
    figure, axis = plot.subplots(figsize=(max(6, 0.28 * len(categories) * len(aps) + 2), 3.4))
    width = 0.8 / len(aps)
    for i, (name, values) in enumerate(aps.items()):
        heights = [values[c] or 0 for c in categories]
        offset = np.arange(len(categories)) + (i - (len(aps) - 1) / 2) * width
        axis.bar(offset, heights, width, label=name)
    rotation = 60 if len(categories) > 12 else 0
    axis.set_xticks(range(len(categories)), categories, rotation=rotation, ha="center", fontsize=8)
    axis.set_ylabel("AP (%)")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8, loc="lower right")
    save_figure(figure, path)
