"""The machine and the versions that a number belongs to, and which backends run on it."""

import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from sdpl import __version__
from sdpl.cores import available_cores
from sdpl.kernels.gpu import find_gpu, find_gpus, gpu_obstacle
from sdpl.runtime.availability import backend_obstacle
from sdpl.runtime.machine import cpu_info, cpu_name, packages
from sdpl.targets import BACKENDS


def environment() -> dict[str, str | int | None]:
    """The machine and the versions that a number belongs to."""
    gpu = find_gpu()
    return {
        "sdpl": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cpu_mhz": cpu_info("cpu MHz"),
        "cores": available_cores(),
        **({"gpu": gpu.name, "driver": gpu.driver} if gpu else {}),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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
    return cpu_info("cpu MHz")


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
