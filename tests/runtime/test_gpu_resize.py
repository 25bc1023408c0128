"""The resize kernel on the driver of host memory, against Pillow bit by bit."""

import numpy as np
import pytest
from host_driver import get, put
from host_encoder import at
from PIL import Image

from sdpl.preprocess import squash
from sdpl.runtime import gpu_resize
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.gpu_resize import GpuResize, Staging, fits

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
    kernel, staging = GpuResize(48, device), Staging(device)
    with device.current():
        stream = device.make_stream()

    def run(images):
        with device.current():
            target = device.allocate(len(images) * 48 * 48 * 3)
            try:
                kernel.enqueue(target, images, staging, stream)
                device.synchronize(stream)
                return at(target, (len(images), 48, 48, 3)).copy()
            finally:
                device.free(target)

    run.kernel, run.staging = kernel, staging
    yield run
    kernel.close()
    kernel.close()
    with device.current():
        staging.free()
        staging.free()
        device.destroy_stream(stream)
    assert {name: get(name) for name in HELD} == before


def by_pillow(images):
    return np.stack([squash(Image.fromarray(image), 48) for image in images])


@pytest.mark.parametrize("seed", range(3))
def test_images_of_different_sizes_in_one_batch(resize, images, seed):
    put("seed", seed)
    expected = by_pillow(images)
    np.testing.assert_array_equal(resize(images), expected)
    np.testing.assert_array_equal(resize(images[::-1]), expected[::-1])
    assert resize([]).shape == (0, 48, 48, 3)


def test_arrays_with_gaps_are_read_as_they_are(resize, images):
    gaps = [images[4][::-1], images[5].transpose(1, 0, 2), images[3][::2, 1::2]]
    np.testing.assert_array_equal(resize(gaps), by_pillow([np.ascontiguousarray(image) for image in gaps]))


def test_a_batch_that_is_too_large_goes_in_parts(resize, images, monkeypatch):
    monkeypatch.setattr(gpu_resize, "MOST_BYTES", 100_000)
    assert [len(part) for part in gpu_resize._parts(images, 48)] == [4, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(resize(images), by_pillow(images))


def test_memory_is_taken_once_and_grows(resize, images):
    def taken():
        return get("cuMemAlloc"), get("cuMemHostAlloc"), get("cuMemFree")

    resize(images)
    before, held = taken(), get("used")
    for batch in (images, images[:2], images[::-1]):
        resize(batch)
    assert [b - a for a, b in zip(before, taken(), strict=True)] == [3, 0, 3]  # the targets of this test
    assert get("used") == held
    resize([*images, *images, *images])
    assert get("used") > held


def test_weights_of_a_size_go_up_once(images):
    plan = gpu_resize._plan([images[3]] * 5 + [images[4]] * 3, 48)
    assert len(plan.weights) == 3  # 96 along both axes, 120, 200
    again = gpu_resize._plan([images[3]], 48)
    assert again.weights.keys() <= plan.weights.keys()  # the very same, kept


def test_a_gpu_without_room_is_named_and_nothing_is_left(resize, images):
    used = get("used")
    put("memory", used + len(images) * 48 * 48 * 3 + 50_000)
    with pytest.raises(OutOfMemoryError, match="too little free memory"):
        resize(images)
    put("memory", 1 << 30)
    assert get("used") == used
    np.testing.assert_array_equal(resize(images[:1]), by_pillow(images[:1]))


def test_what_is_left_to_a_cpu():
    assert fits(3000, 1350, 448)
    assert not fits(3000, 3000, 448)
    assert fits(8, 8192, 448)
    assert not fits(8, 8193, 448)
    assert not fits(8192, 8, 1024)  # 8192 x 1024 between the passes


def test_closed_is_said(resize, images):
    resize.kernel.close()
    with pytest.raises(RuntimeError, match="closed"):
        resize(images)
