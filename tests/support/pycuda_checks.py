"""PyCUDA's launcher with PyCUDA itself, in a process that `pycuda_on_host_driver.py` starts; then the example."""

import os
import runpy
import sys

import numpy as np
import pytest
from host_driver import get, put

from sdpl.errors import UserError
from sdpl.kernels.reference import bilinear_attention_pool

SHAPES = ((1, 49, 20, 64, 16), (2, 50, 7, 300, 17), (8, 9, 6, 64, 8))  # B, L, C, K, E
TOLERANCES = {"float32": 1e-5, "float16": 5e-3}


def main() -> None:
    sys.setdlopenflags(os.RTLD_LAZY)  # PyCUDA links to functions that are not called here, and that the driver lacks
    import pycuda.autoprimaryctx
    from pycuda import driver, gpuarray

    from sdpl.kernels.pycuda_launch import PyCudaKernels

    other = driver.Device(1).retain_primary_context()  # kept: PyCUDA leaves it current when an array has the last of it
    for dtype, tolerance in TOLERANCES.items():
        kernels, largest = PyCudaKernels(dtype), 0.0
        for shape in SHAPES:
            host = operands(shape, dtype)
            there = list(map(gpuarray.to_gpu, host))
            B, L, C, _, _ = shape
            results = [gpuarray.empty(size, np.float32) for size in ((B, C), (B, C, L))]
            expected = bilinear_attention_pool(*(x.astype(np.float64) for x in host))
            for stream in (None, driver.Stream()):
                for result in results:
                    result.set(np.full(result.shape, np.nan, np.float32))
                kernels.forward(*there, *results, stream=stream)
                pycuda.autoprimaryctx.context.synchronize()
                for found, right in zip(results, expected, strict=True):
                    largest = max(largest, float(np.abs(found.get() - right).max()))
        print(f"{dtype}: largest difference {largest:.1e}")
        assert largest < tolerance
        foreign = of_another_gpu(results[0], other)
        refused("logits: expected memory of device 0, got device 1", kernels.forward, *there, foreign)
        kernels.close()
    refused("cannot load the kernel for compute capability 86", PyCudaKernels, "float32", b"no cubin" * 40)
    put("version", 12080)
    refused("the driver .CUDA 12.8. cannot load", PyCudaKernels, "float32")
    put("version", 13000)
    print("launches:", get("cuLaunchKernel"))
    runpy.run_path(sys.argv[1])


def operands(shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    """u, v, q, g and t for B, L, C, K, E."""
    B, L, C, K, E = shape
    rng = np.random.default_rng(0)
    u, v, g = (rng.standard_normal(size).astype(dtype) for size in ((B, L, K), (C, K), (B, L, E)))
    q, t = (rng.standard_normal(size).astype(np.float32) for size in ((K,), (C, E)))
    return [u, v, q / np.float32(K**0.5), g, t]


def of_another_gpu(array, other):
    """An array of the same shape and type in another context."""
    from pycuda import gpuarray

    host = array.get()
    other.push()
    try:
        return gpuarray.to_gpu(host)
    finally:
        other.pop()


def refused(words: str, call, *arguments) -> None:
    """The call must end in one line with these words."""
    with pytest.raises((UserError, ValueError), match=words) as raised:
        call(*arguments)
    assert "\n" not in str(raised.value)
    print("refused:", raised.value)


if __name__ == "__main__":
    main()
