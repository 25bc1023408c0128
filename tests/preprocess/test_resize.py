"""The integer arithmetic of the resize against Pillow, bit by bit."""

import numpy as np
import pytest
from PIL import Image

from sdpl.preprocess import squash
from sdpl.preprocess.resize import BITS, resize, weights

SIZES = [  # height, width, side
    (64, 64, 64),
    (8, 8, 64),
    (65, 63, 64),
    (63, 65, 64),
    (128, 128, 64),
    (427, 640, 96),
    (640, 427, 224),
    (33, 77, 448),
    (8, 2000, 48),  # wide
    (700, 8, 48),  # tall
    (2000, 8, 48),  # so tall that Pillow goes along columns first
    (40, 8, 64),
    (900, 8, 1000),  # tall, and yet larger afterwards
]


def picture(height, width, seed=0):
    """Noise and hard edges: what overshoots."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[::3] = rng.choice([0, 255], image[::3].shape)
    return image


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_the_bits_of_pillow(height, width, side):
    image = picture(height, width)
    np.testing.assert_array_equal(resize(image, side), squash(Image.fromarray(image), side))


def test_many_random_sizes():
    rng = np.random.default_rng(1)
    for seed in range(40):
        height, width, side = (int(x) for x in rng.integers(8, 200, 3))
        image = picture(height, width, seed)
        np.testing.assert_array_equal(resize(image, side), squash(Image.fromarray(image), side))


def test_weights_add_up_to_one():
    for size, out in ((10, 64), (1000, 48), (64, 64)):
        w = weights(size, out)
        assert (np.abs(w.taps.sum(1) - (1 << BITS)) <= w.taps.shape[1]).all()
        assert (w.first >= 0).all()
        assert (w.first + w.count <= size).all()


def test_one_tap_rounded_differently_would_show():
    """The control: the comparison sees a weight that is off by one part in a thousand."""
    image = picture(100, 100)
    w = weights(100, 64)
    w.taps[:, 2] += 1 << (BITS - 10)
    try:
        assert (resize(image, 64) != squash(Image.fromarray(image), 64)).any()
    finally:
        w.taps[:, 2] -= 1 << (BITS - 10)
