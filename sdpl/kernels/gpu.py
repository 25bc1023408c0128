"""The GPUs of this machine, or why there is none that can be used."""

import functools
from dataclasses import dataclass

from sdpl.errors import UserError
from sdpl.install import install_line
from sdpl.kernels.driver import DriverError, call, capability, version


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


def find_gpus() -> list[Gpu]:
    """All GPUs, in the driver's order."""
    if find_gpu() is None:
        return []
    return [gpu for gpu in map(find_gpu, range(call("cuDeviceGetCount"))) if gpu is not None]


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


def named_device(device: int | None) -> int:
    """The number of the GPU that a user named; of the first, whether there is one or not, if they named none. Raises
    UserError when the one that they named cannot be used."""
    if device is None:
        return 0
    obstacle = gpu_obstacle(device)
    if obstacle is not None:
        number = f"device {device}: "
        raise UserError(f"{number}{obstacle.removeprefix(number)}.")
    return device


def pci_bus_id(device_id: int) -> str:
    """The GPU's place on the bus, by which every library of NVIDIA's knows it, whatever its number there."""
    return str(call("cuDeviceGetPCIBusId", 32, call("cuDeviceGet", device_id)).split(b"\0")[0].decode())


@functools.cache
def look(device_id: int) -> Gpu | str:
    """The GPU, or the line that says why it cannot be used; asks the driver once."""
    try:
        from cuda.bindings import driver  # noqa: F401, only whether it is there
    except ImportError:
        return f"cuda-python is not installed: {install_line('cuda')}"
    try:
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
    except DriverError as error:
        return f"no CUDA GPU was found ({error})"
    except RuntimeError:  # cuda-python's, when it finds no library of the driver
        return "no CUDA GPU was found: there is no NVIDIA driver"
    if count == 0:
        return "no CUDA GPU was found (0 devices)"
    if not 0 <= device_id < count:
        return f"device {device_id}: this machine has {count} CUDA GPUs, counted from 0"
    device = call("cuDeviceGet", device_id)
    return Gpu(
        name=call("cuDeviceGetName", 256, device).split(b"\0")[0].decode(),
        capability=capability(device),
        memory_bytes=int(call("cuDeviceTotalMem", device)),
        driver=version(),
    )
