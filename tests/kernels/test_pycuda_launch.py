"""The PyCUDA launcher hands PyCUDA what it expects; on a machine with PyCUDA and a GPU it gives the same answers."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sdpl.kernels.compile import cubin
from sdpl.kernels.plan import Shape, plan_tiled
from sdpl.kernels.pycuda_launch import PyCudaKernels

EXAMPLE = Path(__file__).parents[2] / "examples" / "pycuda_pooling.py"


def recording_driver(calls: list):
    """PyCUDA's driver module as far as the launcher uses it; a launch is recorded."""
    device = SimpleNamespace(compute_capability=lambda: (8, 6), get_attribute={"multiprocessors": 82}.get)
    function = lambda *values, **where: calls.append((values, where))  # noqa: E731
    return SimpleNamespace(
        Error=RuntimeError,
        Context=SimpleNamespace(get_device=lambda: device),
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT="multiprocessors"),
        module_from_buffer=lambda code: calls.append(code) or SimpleNamespace(get_function=lambda entry: function),
    )


def test_the_cubin_of_the_device_is_launched_with_pycuda_s_types(monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=recording_driver(calls)))
    kernels = PyCudaKernels("float16")
    assert calls.pop() == cubin("86", "float16")
    plan = plan_tiled("forward", Shape(32, 49, 80, 1024, 512), "float16", True, kernels.multiprocessors)
    kernels._launch(plan, "a stream", 2**40, 0, np.int32(49), np.float32(1e-6))
    (values, where), *_ = calls
    assert [type(value) for value in values] == [np.uintp, np.uintp, np.int32, np.float32]
    assert values[:2] == (2**40, 0)
    assert where == {"block": (128, 1, 1), "grid": (80, 3, 1), "shared": plan.shared_bytes, "stream": "a stream"}


def test_the_example_on_a_gpu():
    pytest.importorskip("pycuda.driver", reason="needs PyCUDA and a GPU")
    result = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=True)
    assert float(result.stdout.rsplit(" ", 1)[1]) < 1e-2
