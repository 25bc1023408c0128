"""The GPU of this machine, or why there is none that can be used."""

import functools
from dataclasses import dataclass

from sdpl.install import install_line


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine: its name, compute capability ("86"), memory and driver version."""

    name: str
    capability: str
    memory_bytes: int
    driver: str


def find_gpu(device_id: int = 0) -> Gpu | None:
    """The GPU, or None; `gpu_obstacle` then says why."""
    found = look(device_id)
    return found if isinstance(found, Gpu) else None


def gpu_obstacle(device_id: int = 0) -> str | None:
    """One line that says why no GPU can be used, or None when one can."""
    found = look(device_id)
    return None if isinstance(found, Gpu) else found


def require_gpu(device_id: int = 0) -> Gpu:
    """The GPU, where something has already made sure that there is one. Raises RuntimeError otherwise."""
    found = look(device_id)
    if not isinstance(found, Gpu):
        raise RuntimeError(found)
    return found


@functools.cache
def look(device_id: int) -> Gpu | str:
    """The GPU, or the line that says why none can be used; asks the driver once."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return f"cuda-python is not installed: {install_line('cuda')}"
    status, count = runtime.cudaGetDeviceCount()
    if int(status) != 0 or count <= device_id:
        if runtime.cudaDriverGetVersion()[1] == 0:
            return "no CUDA GPU was found: there is no NVIDIA driver"
        reason = runtime.cudaGetErrorString(status)[1]
        return f"no CUDA GPU was found ({reason.decode() if int(status) else f'{count} devices'})"
    properties = runtime.cudaGetDeviceProperties(device_id)[1]
    version = runtime.cudaDriverGetVersion()[1]
    return Gpu(
        name=properties.name.decode().rstrip("\0"),
        capability=f"{properties.major}{properties.minor}",
        memory_bytes=properties.totalGlobalMem,
        driver=f"CUDA {version // 1000}.{version % 1000 // 10}",
    )
