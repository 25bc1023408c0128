"""Attention as heat maps over photos: where the model looked for each category (paper, figures 3 and 9)."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sdpl.errors import UserError
from sdpl.files import replace_file
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


def draw_attention(image: Image.Image, maps: list[tuple[str, float, np.ndarray]], path: Path) -> None:
    """One row: the photo, then for each (category, score, attention [h,w]) the photo under its heat map, whose title
    names the largest attention as a multiple of the mean."""
    plot = pyplot()
    figure, axes = plot.subplots(1, 1 + len(maps), figsize=(2.6 * (1 + len(maps)), 3.0), squeeze=False)
    axes[0, 0].imshow(image)
    axes[0, 0].set_title("image", fontsize=9)
    for axis, (category, score, attention) in zip(axes[0, 1:], maps, strict=True):
        axis.imshow(overlay(image, attention))
        axis.set_title(f"{category}  {score:.2f}\npeak {attention.max() * attention.size:.1f} x mean", fontsize=9)
    for axis in axes[0]:
        axis.set_axis_off()
    save_figure(figure, path)
