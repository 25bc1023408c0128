"""benchmarks/kernel_once.py and kernel.py on the driver of host memory: PyTorch's tensors are on the CPU, and nothing
that is measured means anything."""

import kernel
import kernel_once
import numpy as np
import pytest
import torch
from host_driver import put

from sdpl.kernels.launch import Kernels
from sdpl.runtime.device import Cuda

pytestmark = [
    pytest.mark.slow,
    pytest.mark.host_driver,
    pytest.mark.filterwarnings("ignore:CUDA initialization"),  # autograd looks for a GPU, and this one is not PyTorch's
]

SHAPES = [(2, 7, 5, 32, 8), (2, 1, 1, 8, 1)]  # B, L, C, K, E


@pytest.fixture(autouse=True)
def _tensors_of_the_cpu_are_the_gpu_s(monkeypatch):
    device = Cuda()

    def synchronize():
        with device.current():
            device.synchronize_all()

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 1 << 30))
    put("trusting", 1)
    yield
    put("trusting", 0)


@pytest.mark.parametrize("dtype", kernel_once.DTYPES)
def test_every_kernel_once(dtype, monkeypatch):
    monkeypatch.setattr(kernel_once, "to_gpu", lambda x: x)
    kernels = Kernels(dtype)
    for shape in SHAPES:
        assert kernel_once.departures(kernels, dtype, shape, "cpu") == []
    kernels.close()


def test_a_wrong_kernel_is_named(monkeypatch):
    monkeypatch.setattr(kernel_once, "to_gpu", lambda x: x)

    class OnePercentTooLarge(Kernels):
        def forward(self, *arrays, **options):
            super().forward(*arrays, **options)
            torch.cuda.synchronize()
            logits = arrays[5]
            memory = (np.ctypeslib.ctypes.c_float * int(np.prod(logits.shape))).from_address(logits.pointer)
            np.ctypeslib.as_array(memory)[:] *= 1.01

    kernels = OnePercentTooLarge("float32")
    (found,) = kernel_once.departures(kernels, "float32", SHAPES[0], "cpu")
    assert found.startswith("logits: errors of ")
    kernels.close()


@pytest.mark.parametrize(("dtype", "scale"), [("float16", 1), ("float32", 1), ("float32", 1.1)])
def test_one_shape_of_the_benchmark(monkeypatch, dtype, scale):
    for name, small in (("K", 32), ("E", 8), ("DEVICE", "cpu")):
        monkeypatch.setattr(kernel, name, small)
    monkeypatch.setattr(kernel, "in_graph", lambda call, times: lambda: call(0))
    monkeypatch.setattr(kernel, "device_us", lambda call, calls=1, rounds=1: (call(), torch.cuda.synchronize(), 1.0)[2])
    monkeypatch.setattr(kernel, "ResearchHead", lambda C: torch.nn.Identity())
    specified = kernel.bilinear_attention_pool
    monkeypatch.setattr(kernel, "bilinear_attention_pool", lambda *x: [each * scale for each in specified(*x)])
    kernels = Kernels(dtype)
    row = kernel.one_shape(5, 3, 7, dtype, kernels, 1e12, kernels if dtype == "float16" else None)
    assert {"kernel_us", "one_launch_in_a_graph_us", "folded_eager_us", "research_us"} <= set(row)
    assert ("polynomial_us" in row) == (dtype == "float16")
    assert list(row.get("wrong", {})) == ([] if scale == 1 else ["kernel"])
    assert not isinstance(row["folded_eager_us"], str)
    kernels.close()
