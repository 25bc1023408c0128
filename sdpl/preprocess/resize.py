"""Pillow's antialiased bicubic resize of 8-bit images, as integer arithmetic: the same bits on any machine.

A pixel of the result is a weighted sum over a few pixels of the input, along rows first, then along columns (the other
way round for a very tall image), each time rounded to 8 bits. Weights are made in float64 and rounded to 22 bits after
the point. `sdpl/kernels/resize.cu` is the same arithmetic on a GPU; both take their weights from here.
"""

import functools
from dataclasses import dataclass

import numpy as np

BITS = 22  # of a weight, after the point
SUPPORT = 2.0  # of the bicubic filter, in pixels
HALF = 1 << (BITS - 1)


@dataclass(frozen=True)
class Weights:
    """Along one axis: result pixel i is sum_k taps[i,k] input[first[i]+k], for k < count[i]; other taps are 0."""

    first: np.ndarray  # int32 [O]
    count: np.ndarray  # int32 [O]
    taps: np.ndarray  # int32 [O,T]

    @functools.cached_property
    def packed(self) -> np.ndarray:
        """As the kernel reads them, int32 [O,2+T]: first, count, taps."""
        return np.concatenate([self.first[:, None], self.count[:, None], self.taps], axis=1)


@functools.lru_cache(maxsize=256)
def weights(size: int, out: int) -> Weights:
    """The weights of `size` input pixels for `out` result pixels."""
    scale = size / out
    stretch = max(scale, 1.0)  # a smaller result widens the filter: antialiasing
    support = SUPPORT * stretch
    center = (np.arange(out) + 0.5) * scale  # [O]
    first = np.maximum(np.trunc(center - support + 0.5), 0).astype(np.int32)
    count = np.minimum(np.trunc(center + support + 0.5), size).astype(np.int32) - first
    inverse, total, columns = 1.0 / stretch, np.zeros(out), []
    for k in range(int(count.max())):
        w = np.where(k < count, _bicubic((k + first - center + 0.5) * inverse), 0.0)  # [O]
        total += w  # one after the other, since the order decides the last bit
        columns.append(w)
    taps = np.stack(columns, axis=1) / total[:, None] * (1 << BITS)
    return Weights(first, count, np.trunc(taps + np.where(taps < 0, -0.5, 0.5)).astype(np.int32))


@dataclass(frozen=True)
class Pass:
    """One of the two passes over an image: its axis (0 along columns, 1 along rows), and its weights."""

    axis: int
    weights: Weights


def passes(height: int, width: int, side: int) -> tuple[Pass, Pass]:
    """The two passes from an image to [side,side], in Pillow's order."""
    rows, columns = Pass(1, weights(width, side)), Pass(0, weights(height, side))
    return (columns, rows) if height > 100 * width and side < height else (rows, columns)


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H,W,3] to uint8 [side,side,3], with the bits of Pillow's `Image.resize` and BICUBIC."""
    for each in passes(image.shape[0], image.shape[1], side):
        image = _along(image, each)
    return image


def _along(image: np.ndarray, each: Pass) -> np.ndarray:
    """[H,W,3] to [H,O,3], or along columns to [O,W,3]."""
    w, axis = each.weights, each.axis
    shape = [*image.shape]
    shape[axis] = len(w.first)
    result = np.full(shape, HALF, np.int32)
    for k in range(w.taps.shape[1]):
        where = np.minimum(w.first + k, image.shape[axis] - 1)  # beyond `count` its weight is 0
        taps = w.taps[:, k].reshape(-1, 1) if axis else w.taps[:, k].reshape(-1, 1, 1)
        result += np.take(image, where, axis).astype(np.int32) * taps
    clipped: np.ndarray = np.clip(result >> BITS, 0, 255).astype(np.uint8)
    return clipped


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    a = -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    filtered: np.ndarray = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    return filtered
