"""The launcher on the driver of host memory: real calls through cuda-python, the kernels on the emulator."""

import ctypes
import threading

import numpy as np
import pytest
from host_driver import get, put
from host_encoder import at

from sdpl.errors import UserError
from sdpl.kernels import driver, gpu
from sdpl.kernels.arrays import BYTES, DeviceArray, narrow
from sdpl.kernels.launch import Kernels
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.runtime.device import Cuda

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

SHAPES = [(1, 49, 20, 64, 16), (2, 50, 7, 300, 17), (8, 9, 6, 64, 8)]  # B, L, C, K, E


class Operands:
    """u, v, q, g, t and room for the results on a GPU."""

    def __init__(self, shape, dtype, device=None):
        B, L, C, K, E = shape
        self.device = device or Cuda()
        rng = np.random.default_rng(0)
        u, v, g, q, t = (rng.standard_normal(s) for s in ((B, L, K), (C, K), (B, L, E), (K,), (C, E)))
        self.host = [u, v, q / K**0.5, g, t]
        types = (dtype, dtype, "float32", dtype, "float32")
        with self.device.current():
            self.arrays = [self.upload(array, kind) for array, kind in zip(self.host, types, strict=True)]
            self.arrays.append(DeviceArray(self.device.allocate(4 * B * C), (B, C), "float32"))
            self.arrays.append(DeviceArray(self.device.allocate(4 * B * C * L), (B, C, L), "float32"))

    def upload(self, array, dtype):
        bits = narrow(array, dtype)
        pointer = self.device.allocate(bits.nbytes)
        ctypes.memmove(pointer, bits.ctypes.data, bits.nbytes)
        return DeviceArray(pointer, array.shape, dtype)

    def results(self):
        return [at(array.pointer, array.shape, np.float32) for array in self.arrays[-2:]]

    def free(self):
        with self.device.current():
            for array in self.arrays:
                self.device.free(array.pointer)


@pytest.fixture
def operands():
    made = []

    def make(*arguments, **options):
        made.append(Operands(*arguments, **options))
        return made[-1]

    yield make
    for each in made:
        each.free()
    assert get("used") == 0


@pytest.mark.parametrize("dtype", list(BYTES))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_dtype_on_the_default_stream_and_one_of_its_own(operands, dtype, shape):
    mine = operands(shape, dtype)
    kernels, device = Kernels(dtype), mine.device
    expected = bilinear_attention_pool(*mine.host)
    with device.current():
        stream = device.make_stream()
    for where in (None, 0, stream):
        for result in mine.results():
            result[:] = np.nan
        kernels.forward(*mine.arrays, stream=where)
        assert np.isnan(mine.results()[0]).all(), "it ran before anybody waited for it"
        with device.current():
            device.synchronize(where or 0)
        for result, right in zip(mine.results(), expected, strict=True):
            np.testing.assert_allclose(result, right, atol={"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}[dtype])
    with device.current():
        device.destroy_stream(stream)
    kernels.close()


def test_a_thread_without_a_context_may_launch(operands):
    """PyTorch's backward thread is one; the driver's answer would be error 201."""
    mine = operands(SHAPES[0], "float32")
    kernels, failures = Kernels("float32"), []

    def work():
        try:
            kernels.forward(*mine.arrays)
            failures.append(int(driver.call("cuCtxGetCurrent")) and "the thread was left with a context")
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [0]
    with mine.device.current():
        mine.device.synchronize_all()
    np.testing.assert_allclose(mine.results()[0], bilinear_attention_pool(*mine.host)[0], atol=1e-5)
    kernels.close()


def test_without_a_context_the_driver_refuses():
    """The control of the test above: the driver is as strict as a real one."""
    kernels, status = Kernels("float32"), []

    def work():
        from cuda.bindings import driver as cuda

        function = kernels._function
        status.append(int(cuda.cuMemAlloc(16)[0]))
        status.append(int(cuda.cuLaunchKernel(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)[0]))
        assert function

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert status == [201, 201]
    kernels.close()


def test_each_gpu_has_kernels_of_its_own_and_the_caller_keeps_its_context(operands):
    second = Cuda(1)
    mine = operands(SHAPES[0], "float32", device=second)
    kernels = Kernels("float32", device_id=1)
    with Cuda(0).current():
        before = int(driver.call("cuCtxGetCurrent"))
        kernels.forward(*mine.arrays)
        assert int(driver.call("cuCtxGetCurrent")) == before
    with second.current():
        second.synchronize_all()
    np.testing.assert_allclose(mine.results()[0], bilinear_attention_pool(*mine.host)[0], atol=1e-5)
    kernels.close()
    assert [found.name for found in gpu.find_gpus()] == ["Host memory 0", "Host memory 1"]


def test_closing_unloads_the_code():
    before = get("modules")
    kernels = Kernels("float16")
    assert get("modules") == before + 1
    kernels.close()
    kernels.close()
    assert get("modules") == before
    with pytest.raises(RuntimeError, match="these kernels are closed"):
        kernels._function("forward_f16_aligned")


NAMES = ("u", "v", "q", "g", "t", "logits", "attention")


class Shared:
    """An array as PyTorch, CuPy and PyCUDA describe theirs."""

    def __init__(self, array, offset=0, **changes):
        typestr = {"float32": "<f4", "float16": "<f2", "bfloat16": "<V2"}[array.dtype]
        self.__cuda_array_interface__ = {
            "shape": array.shape, "typestr": typestr, "strides": None, "data": (array.pointer + offset, False),
            "version": 3,
        } | changes  # fmt: skip


def shared(mine, **instead):
    """The operands as another library would share them, some of them changed."""
    return {name: Shared(array) for name, array in zip(NAMES, mine.arrays, strict=True)} | instead


@pytest.mark.parametrize("dtype", list(BYTES))
def test_arrays_of_other_libraries(operands, dtype):
    mine, kernels = operands(SHAPES[0], dtype), Kernels(dtype)
    kernels.forward(**shared(mine))
    with mine.device.current():
        mine.device.synchronize_all()
    expected = bilinear_attention_pool(*mine.host)
    np.testing.assert_allclose(mine.results()[0], expected[0], atol=4e-2 if dtype == "bfloat16" else 5e-3)
    kernels.close()


class NeedsGradient:
    @property
    def __cuda_array_interface__(self):
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


def test_arrays_that_a_gpu_could_not_read_are_named_and_nothing_is_launched(operands):
    """Most of them would end the context, and with it everything that this process has on the GPU."""
    mine, there = operands(SHAPES[0], "float32"), operands(SHAPES[0], "float32", device=Cuda(1))
    kernels, u, host = Kernels("float32"), mine.arrays[0], np.zeros(SHAPES[0][2:4], np.float32)
    refused = [
        *(
            ({name: Shared(other)}, f"{name}: expected memory of device 0, got device 1")
            for name, other in zip(NAMES, there.arrays, strict=True)
        ),
        ({"v": Shared(mine.arrays[1], data=(host.ctypes.data, False))}, "v: .* got memory that CUDA does not know"),
        ({"v": host}, "v: expected an array on a CUDA device, got ndarray"),
        ({"u": Shared(u, offset=2)}, "u: expected an address that is a multiple of 4, got 0x"),
        ({"u": Shared(u, typestr="<f2")}, r"u: expected float32 \[1, 49, 64\], got float16"),
        ({"u": Shared(u, typestr="<i4")}, "u: expected float32, float16 or bfloat16, got type <i4"),
        ({"u": Shared(u, strides=(4, 8, 16))}, "u: expected a C-contiguous array"),
        ({"u": Shared(u, mask=Shared(u))}, "u: expected an array without a mask"),
        ({"u": NeedsGradient()}, "u: Can't get __cuda_array_interface__ on Variable that requires grad"),
        ({"logits": Shared(mine.arrays[5], data=(mine.arrays[5].pointer, True))}, "logits: .* that can be written to"),
        ({"stream": "fast"}, "stream: expected an address, an object with __cuda_stream__, or None, got str"),
    ]
    before = {name: get(name) for name in ("used", "pinned", "modules", "cuLaunchKernel")}
    for change, message in refused:
        with pytest.raises(ValueError, match=message) as raised:
            kernels.forward(**shared(mine, **change))
        assert "\n" not in str(raised.value)
    assert {name: get(name) for name in before} == before
    kernels.forward(**shared(mine, u=Shared(u, data=(u.pointer, True))))  # read-only is fine for what is only read
    with mine.device.current():
        mine.device.synchronize_all()
    np.testing.assert_allclose(mine.results()[0], bilinear_attention_pool(*mine.host)[0], atol=1e-5)
    kernels.close()


def test_memory_of_another_context_is_named(operands):
    """On the same GPU: CUDA knows the address, but a kernel of the primary context may not read there."""
    mine, kernels = operands(SHAPES[0], "float32"), Kernels("float32")
    with mine.device.current():
        driver.call("cuCtxCreate", None, 0, 0)
        pointer = int(driver.call("cuMemAlloc", 4 * 20 * 64))
    elsewhere = DeviceArray(pointer, mine.arrays[1].shape, "float32")
    with pytest.raises(ValueError, match="v: expected memory of device 0's primary context, got another context's"):
        kernels.forward(**shared(mine, v=Shared(elsewhere)))
    with mine.device.current():
        mine.device.free(pointer)
    kernels.close()


def test_rows_at_odd_addresses_are_read_value_by_value(operands):
    mine, kernels = operands(SHAPES[0], "float16"), Kernels("float16")
    u = mine.arrays[0]
    with mine.device.current():
        base = mine.device.allocate(2 * 49 * 64 + 2)
    ctypes.memmove(base + 2, u.pointer, 2 * 49 * 64)
    kernels.forward(**shared(mine, u=Shared(DeviceArray(base + 2, u.shape, "float16"))))
    with mine.device.current():
        mine.device.synchronize_all()
        mine.device.free(base)
    np.testing.assert_allclose(mine.results()[0], bilinear_attention_pool(*mine.host)[0], atol=5e-3)
    assert set(kernels._functions) == {"forward_f16_any"}
    kernels.close()


def test_an_empty_batch_has_no_address_and_launches_nothing(operands):
    mine, kernels = operands(SHAPES[0], "float32"), Kernels("float32")
    empty = {
        name: Shared(DeviceArray(0, (0, *mine.arrays[i].shape[1:]), "float32"))
        for i, name in ((0, "u"), (3, "g"), (5, "logits"), (6, "attention"))
    }
    launches = get("cuLaunchKernel")
    kernels.forward(**shared(mine, **empty))
    assert get("cuLaunchKernel") == launches
    kernels.close()


@pytest.fixture
def capability():
    """capability(87) makes the GPUs ones of that compute capability."""

    def change(value):
        put("capability", value)
        gpu.look.cache_clear()

    yield change
    change(86)


def test_later_minors_run_the_cubin_of_an_earlier_one(capability):
    capability(87)
    Kernels("float32").close()
    assert gpu.find_gpu().capability == "87"


def test_a_gpu_without_kernels_is_named(capability):
    capability(75)
    with pytest.raises(
        UserError, match="compute capability 75: kernels are built for 80, 86, 89, 90, 100, 120, and for"
    ):
        Kernels("float32")


def test_a_cubin_that_the_driver_refuses_is_one_line(capability):
    from sdpl.kernels.compile import cubin

    with pytest.raises(UserError, match=r"the driver \(CUDA 13.0\) cannot load the kernel for compute capability 86"):
        Kernels("float32", cubin("90", "float32"))
    with pytest.raises(UserError, match=r"update the driver \(CUDA 13 needs 580 or later\), or export again"):
        Kernels("float32", b"no cubin at all, but long enough to be looked at by a driver" * 4)


@pytest.mark.parametrize("number", [-1, 2])
def test_a_gpu_that_is_not_there_is_named(number):
    line = f"device {number}: this machine has 2 CUDA GPUs, counted from 0"
    with pytest.raises(UserError, match=line):
        Cuda(number)
    assert gpu.gpu_obstacle(number) == line


def test_a_driver_without_gpus_is_named():
    put("gpus", 0)
    gpu.look.cache_clear()
    try:
        assert gpu.gpu_obstacle() == "no CUDA GPU was found (0 devices)"
    finally:
        put("gpus", 2)
        gpu.look.cache_clear()


@pytest.fixture
def status():
    """status("init_status", 803): the driver's calls of that kind end so."""
    changed = []

    def change(name, value):
        changed.append(name)
        put(name, value)
        gpu.look.cache_clear()
        driver.context.cache_clear()

    yield change
    for name in changed:
        put(name, 0)
    gpu.look.cache_clear()
    driver.context.cache_clear()


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (34, "this libcuda is a stub for compiling: take its folder out of LD_LIBRARY_PATH"),
        (100, "is CUDA_VISIBLE_DEVICES set to none, or this a container without --gpus all"),
        (803, "the driver was updated: restart the machine"),
    ],
)
def test_a_driver_that_does_not_start_is_told_with_what_helps(status, number, fix):
    status("init_status", number)
    assert fix in gpu.gpu_obstacle()
    assert gpu.gpu_obstacle().startswith("no CUDA GPU was found (cuInit: ")


def test_a_gpu_that_another_process_has_for_itself_is_one_line(status):
    status("context_status", 46)
    with pytest.raises(UserError, match=r"device 0 cannot be used \(cuDevicePrimaryCtxRetain: .* another process"):
        Kernels("float32")
