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
from sdpl.kernels.gpu import find_gpu, find_gpus, gpu_obstacle, named_device, pci_bus_id
from sdpl.runtime.availability import backend_obstacle
from sdpl.runtime.machine import cpu_info, cpu_name, packages
from sdpl.targets import BACKENDS


def environment(device: int = 0) -> dict[str, str | int | None]:
    """The machine and the versions that a number belongs to. device: the number of the GPU that it was measured on."""
    gpu = find_gpu(device)
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


def backends(device: int = 0) -> dict[str, str | None]:
    """For each backend, fastest first, why it cannot run here, on this GPU, or None."""
    return {name: backend_obstacle(name, device) for name in BACKENDS}


def clock_mhz(device: int = 0) -> str | None:
    """The clock now: of the GPU where there is one, None where it does not tell; else of the first core."""
    if find_gpu(device) is not None:
        with suppress(Exception):  # a driver that does not tell is no reason to fail
            from cuda.bindings import nvml

            nvml.init_v2()
            handle = nvml.device_get_handle_by_pci_bus_id_v2(pci_bus_id(device))  # its numbers are not CUDA's
            return f"{nvml.device_get_clock_info(handle, nvml.ClockType.SM)} (GPU)"
        return None
    return cpu_info("cpu MHz")


def peak_memory_mb() -> float | None:
    """The largest resident set of this process so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def gpu_used_mb(device: int = 0) -> float | None:
    """Memory in use on the GPU, by all programs."""
    gpu = find_gpu(device)
    if gpu is None:
        return None
    from sdpl.runtime.device import Cuda

    cuda = Cuda(device)
    with cuda.current():
        return (gpu.memory_bytes - cuda.free_bytes()) / 1e6


def describe(device: int | None = None) -> dict[str, Any]:
    """Everything above as plain values. device: the number of a GPU; by default the first, if there is one. Raises
    UserError for one that is not there."""
    device = named_device(device)
    gpu = find_gpu(device)
    return {
        **environment(device),
        "packages": packages(),
        "gpu": asdict(gpu) if gpu else gpu_obstacle(device),
        "gpus": [asdict(each) for each in find_gpus()],
        "backends": {name: obstacle or "usable" for name, obstacle in backends(device).items()},
    }
