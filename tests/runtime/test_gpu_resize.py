"""The resize kernel on the driver of host memory, against Pillow bit by bit."""

import numpy as np
import pytest
from host_driver import get, put
from host_encoder import at
from PIL import Image

from sdpl.preprocess import squash
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.gpu_resize import GpuResize

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

SIZES = [(48, 48), (8, 8), (47, 49), (96, 96), (120, 200), (213, 77), (8, 500), (700, 8), (2000, 8)]  # heights, widths
HELD = ("used", "pinned", "streams", "modules")


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.choice([0, 17, 130, 255], (*size, 3)).astype(np.uint8) for size in SIZES]


@pytest.fixture
def resize():
    """resize(images) -> uint8 [B,48,48,3], through the GPU."""
    before = {name: get(name) for name in HELD}
    device = Cuda()
    kernel = GpuResize(48, device)

    def run(images):
        with device.current():
            target = device.allocate(len(images) * 48 * 48 * 3)
        try:
            kernel.into(target, images)
            return at(target, (len(images), 48, 48, 3)).copy()
        finally:
            with device.current():
                device.free(target)

    run.kernel = kernel
    yield run
    kernel.close()
    kernel.close()
    assert {name: get(name) for name in HELD} == before


def test_images_of_different_sizes_in_one_batch(resize, images):
    expected = [squash(Image.fromarray(image), 48) for image in images]
    np.testing.assert_array_equal(resize(images), expected)
    np.testing.assert_array_equal(resize(images[::-1]), expected[::-1])
    assert resize([]).shape == (0, 48, 48, 3)


def test_a_gpu_without_room_is_named_and_nothing_is_left(resize, images):
    used = get("used")
    put("memory", used + len(images) * 48 * 48 * 3 + 50_000)
    with pytest.raises(OutOfMemoryError, match="too little free memory"):
        resize(images)
    put("memory", 1 << 30)
    assert get("used") == used
    np.testing.assert_array_equal(resize(images[:1]), [squash(Image.fromarray(images[0]), 48)])


def test_closed_is_said(resize, images):
    resize.kernel.close()
    with pytest.raises(RuntimeError, match="closed"):
        resize(images)
