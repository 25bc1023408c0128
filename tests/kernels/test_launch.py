"""Plans: every value is covered once and the GPU is filled. Arrays: what does not fit is named before any launch."""

import numpy as np
import pytest

from sdpl.kernels.arrays import DeviceArray, is_aligned
from sdpl.kernels.compile import constants
from sdpl.kernels.launch import Kernels
from sdpl.kernels.plan import Shape, plan_backward_u, plan_backward_vq, plan_tiled

H100 = 132  # multiprocessors


@pytest.mark.parametrize(
    ("batch", "categories", "dtype", "aligned", "entry", "grid", "tiling"),
    [
        (1, 80, "float16", True, "forward_f16_aligned", (80, 1, 1), (1, 4)),
        (8, 80, "float16", True, "forward_f16_aligned", (128, 2, 1), (5, 4)),
        (1, 500, "float16", True, "forward_f16_aligned", (125, 1, 1), (4, 4)),
        (32, 80, "float16", True, "forward_f16_aligned", (128, 3, 1), (20, 4)),
        (32, 80, "float32", True, "forward_f32_aligned", (128, 3, 1), (20, 2)),
        (1, 300, "float32", True, "forward_f32_aligned", (100, 2, 1), (3, 2)),
        (32, 80, "bfloat16", False, "forward_bf16_any", (128, 3, 1), (20, 1)),
        (0, 80, "float16", True, "forward_f16_aligned", (0, 1, 1), (1, 4)),
    ],
)
def test_every_multiprocessor_takes_as_many_pairs(batch, categories, dtype, aligned, entry, grid, tiling):
    plan = plan_tiled("forward", Shape(batch, 49, categories, 1024, 512), dtype, aligned, H100)
    assert (plan.entry, plan.grid, plan.tiling, plan.block) == (entry, grid, tiling, 128)


@pytest.mark.parametrize(("locations", "most"), [(1, 4), (49, 4), (196, 4), (1024, 2)])
def test_shared_memory_holds_scores_and_weights_below_48_kb(locations, most):
    plan = plan_tiled("forward", Shape(64, locations, 9600, 1024, 512), "float16", True, H100)
    assert plan.tiling[1] == most
    assert plan.shared_bytes == 4 * 4 * most * (locations + 8 + 2) <= 48 << 10
    plan = plan_tiled("scores", Shape(64, locations, 9600, 1024), "float16", True, H100)
    assert plan.shared_bytes == 4 * plan.tiling[1] * 4 * locations <= 48 << 10


@pytest.mark.parametrize("joint", [1, 255, 256, 257, 1024])
def test_backward_covers_k_and_l(joint):
    plan = plan_backward_u(Shape(3, 50, 7, joint), "float16", joint % 8 == 0)
    assert plan.grid[0] * plan.block * constants()["BACKWARD_K"] >= joint
    assert plan.grid[1:] == (8, 3)


@pytest.mark.parametrize("batch", [0, 1, 5, 64, 1000])
@pytest.mark.parametrize("categories", [1, 80, 9600])
def test_slices_cover_the_batch_and_none_is_empty(batch, categories):
    plan, slices = plan_backward_vq(Shape(batch, 49, categories, 1024), "float32", True, H100)
    per_slice = -(-batch // slices)
    assert plan.grid[2] == slices >= 1
    assert slices * per_slice >= batch
    assert (slices - 1) * per_slice < max(batch, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 0, 5, 8), "L: expected 1 to 1024 locations, got 0"),
        ((1, 1025, 5, 8), "L: expected 1 to 1024 locations, got 1025"),
        ((1, 49, 0, 8), "expected at least one category and K >= 1, got C=0, K=8"),
        ((65536, 49, 5, 8), "B: expected at most 65535 images in one launch, got 65536"),
        ((1, 49, 5, 1 << 21), "K and E: expected at most 1048576, got K=2097152, E=0"),
        ((1, 49, 5, 8, 1 << 21), "K and E: expected at most 1048576, got K=8, E=2097152"),
    ],
)
def test_shapes_beyond_the_limits_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        Shape(*sizes)


def test_more_pairs_than_32_bits_can_count_are_named():
    with pytest.raises(
        ValueError, match=r"B\*C: expected at most 268435456 pairs of image and category .*, got 655350000"
    ):
        plan_tiled("forward", Shape(65535, 49, 10000, 1024, 512), "float16", True, H100)


class OnDevice:
    """An array as PyCUDA, CuPy and PyTorch describe theirs."""

    def __init__(self, shape, typestr="<f4", strides=None, pointer=256):
        self.__cuda_array_interface__ = {
            "shape": shape, "typestr": typestr, "strides": strides, "data": (pointer, False), "version": 3,
        }  # fmt: skip


def test_device_arrays_of_any_library():
    assert DeviceArray.of(OnDevice((2, 3), "<f2"), "u") == DeviceArray(256, (2, 3), "float16")
    assert DeviceArray.of(OnDevice((2, 3), strides=(12, 4)), "u").shape == (2, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), "u: expected an array on a CUDA device, got ndarray"),
        (OnDevice((2,), "<f8"), "u: expected float32, float16 or bfloat16, got type <f8"),
        (
            OnDevice((2, 3), strides=(4, 8)),
            r"u: expected a C-contiguous array, got strides \(4, 8\) for shape \(2, 3\)",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(array, message):
    with pytest.raises(ValueError, match=message):
        DeviceArray.of(array, "u")


def test_alignment_decides_how_rows_are_read():
    u, odd = DeviceArray(256, (1, 49, 1024), "float16"), DeviceArray(258, (1, 49, 1024), "float16")
    assert is_aligned(Shape(1, 49, 80, 1024), u)
    assert not is_aligned(Shape(1, 6, 80, 1024), u)
    assert not is_aligned(Shape(1, 49, 80, 1024), u, odd)
    assert not is_aligned(Shape(1, 49, 80, 1020), u)
    assert is_aligned(Shape(1, 49, 80, 1024, 512), u)
    assert not is_aligned(Shape(1, 49, 80, 1024, 510), u)


@pytest.fixture
def kernels():
    """A launcher without a GPU, whose launches are recorded."""
    launcher = object.__new__(Kernels)
    launcher.dtype, launcher.multiprocessors, launcher.launched = "float16", H100, []
    launcher._require_here = lambda pointer, name: None
    launcher._launch = lambda plan, stream, *arguments: launcher.launched.append((plan, arguments))
    return launcher


def inputs(**changes):
    shapes = {
        "u": ((2, 49, 64), "<f2"), "v": ((5, 64), "<f2"), "q": ((64,), "<f4"),
        "g": ((2, 49, 16), "<f2"), "t": ((5, 16), "<f4"), "logits": ((2, 5), "<f4"),
    }  # fmt: skip
    return {name: OnDevice(*spec) for name, spec in (shapes | changes).items()}


def test_a_right_call_is_launched_with_c_types(kernels):
    kernels.forward(**inputs())
    ((plan, arguments),) = kernels.launched
    assert plan.entry == "forward_f16_aligned"
    assert arguments[:7] == (256, 256, 256, 256, 256, 256, 0)
    assert [type(a) for a in arguments[7:]] == [np.int32] * 7 + [np.float32]
    assert [int(a) for a in arguments[7:14]] == [2, 49, 5, 64, 16, *plan.tiling]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": ((5, 63), "<f2")}, r"v: expected float16 \[5, 64\], got float16 \[5, 63\]"),
        ({"u": ((2, 49, 64), "<f4")}, r"u: expected float16 \[2, 49, 64\], got float32 \[2, 49, 64\]"),
        ({"u": ((49, 64), "<f2")}, r"expected u \[B,L,K\] and v \[C,K\], got \[49, 64\] and \[5, 64\]"),
        ({"q": ((1, 64), "<f4")}, r"q: expected float32 \[64\], got float32 \[1, 64\]"),
        ({"g": ((2, 50, 16), "<f2")}, r"g: expected float16 \[2, 49, 16\], got float16 \[2, 50, 16\]"),
        ({"g": ((2, 49, 0), "<f2"), "t": ((5, 0), "<f4")}, r"g: expected E >= 1, got \[2, 49, 0\]"),
        ({"t": ((5, 15), "<f4")}, r"t: expected float32 \[5, 16\], got float32 \[5, 15\]"),
        ({"logits": ((2, 6), "<f4")}, r"logits: expected float32 \[2, 5\], got float32 \[2, 6\]"),
    ],
)
def test_a_wrong_call_is_named_and_not_launched(kernels, change, message):
    with pytest.raises(ValueError, match=message):
        kernels.forward(**inputs(**change))
    assert not kernels.launched
