"""The machine and the versions that a number belongs to, and which backends run on it."""

import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from sdpl import __version__
from sdpl.kernels.gpu import find_gpu, find_gpus, gpu_obstacle
from sdpl.runtime.availability import backend_obstacle
from sdpl.targets import BACKENDS

PACKAGES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-bindings", "torch")


def environment() -> dict[str, str | int | None]:
    """The machine and the versions that a number belongs to."""
    gpu = find_gpu()
    return {
        "sdpl": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": _cpu_info("model name") or platform.processor(),
        "cpu_mhz": _cpu_info("cpu MHz"),
        "cores": os.cpu_count(),
        **({"gpu": gpu.name, "driver": gpu.driver} if gpu else {}),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def packages() -> dict[str, str]:
    """Versions of the packages that matter here and are installed."""
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def backends() -> dict[str, str | None]:
    """For each backend, fastest first, why it cannot run here, or None."""
    return {name: backend_obstacle(name) for name in BACKENDS}


def clock_mhz() -> str | None:
    """The clock now: of the GPU where there is one, else of the first core."""
    if find_gpu() is not None:
        with suppress(Exception):  # a driver that does not tell is no reason to fail
            from cuda.bindings import nvml

            nvml.init_v2()
            handle = nvml.device_get_handle_by_index_v2(0)
            return f"{nvml.device_get_clock_info(handle, nvml.ClockType.SM)} (GPU)"
    return _cpu_info("cpu MHz")


def peak_memory_mb() -> float | None:
    """The largest resident set of this process so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def gpu_used_mb() -> float | None:
    """Memory in use on the GPU, by all programs."""
    gpu = find_gpu()
    if gpu is None:
        return None
    from sdpl.runtime.device import Cuda

    device = Cuda()
    with device.current():
        return (gpu.memory_bytes - device.free_bytes()) / 1e6


def describe() -> dict[str, Any]:
    """Everything above as plain values."""
    gpu = find_gpu()
    return {
        **environment(),
        "packages": packages(),
        "gpu": asdict(gpu) if gpu else gpu_obstacle(),
        "gpus": [asdict(each) for each in find_gpus()],
        "backends": {name: obstacle or "usable" for name, obstacle in backends().items()},
    }


def _cpu_info(key: str) -> str | None:
    """The first core's entry in /proc/cpuinfo; None where there is no such file."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
    except OSError:
        return None
