"""The CUDA driver API through NVIDIA's cuda-python: all that this project asks of a GPU goes through `call`."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdpl.errors import UserError

# What a user can do about a status of the driver that says that the machine, not the call, is in the wrong
FIXES = {
    34: "this libcuda is a stub for compiling: take its folder out of LD_LIBRARY_PATH",
    46: "another process has it for itself: see nvidia-smi, its compute mode",
    100: "is CUDA_VISIBLE_DEVICES set to none, or this a container without --gpus all?",
    214: "its memory is damaged: see nvidia-smi -q, and reset it",
    802: "start nvidia-fabricmanager",
    803: "the driver was updated: restart the machine",
    804: "CUDA's compatibility libraries do not fit this GPU: take them out of LD_LIBRARY_PATH, or update the driver",
    999: "see nvidia-smi; after a suspend, reload nvidia_uvm or restart the machine",
}


class DriverError(RuntimeError):
    """A call of the driver that failed; `status` is its number."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class OutOfMemoryError(UserError):
    """The GPU has too little free memory for what was asked."""


def call(name: str, *arguments: Any) -> Any:
    """A function of the driver; its result, a list of several, or None. Raises OutOfMemoryError and DriverError."""
    from cuda.bindings import driver

    status, *results = getattr(driver, name)(*arguments)
    if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
        raise OutOfMemoryError(
            "the GPU has too little free memory: use a smaller batch, or close other programs on it."
        )
    if int(status) != 0:
        raise DriverError(f"{name}: {_words(driver, status)}", int(status))
    return results[0] if len(results) == 1 else results or None


def version() -> str:
    """The newest CUDA that the driver knows, as "CUDA 13.0"."""
    number = call("cuDriverGetVersion")
    return f"CUDA {number // 1000}.{number % 1000 // 10}"


class Context:
    """One GPU's primary context, which PyTorch and everything on CUDA's runtime API share.

    The driver keeps the current context per thread: a thread that has none, as PyTorch's backward thread, cannot
    launch. `current` makes this one current for a while and gives the thread its own back.
    """

    def __init__(self, device_id: int):
        call("cuInit", 0)
        count = call("cuDeviceGetCount")
        if not 0 <= device_id < count:
            raise UserError(f"device {device_id}: this machine has {count} CUDA GPUs, counted from 0.")
        self.device_id = device_id
        self.not_capturing = threading.RLock()  # CUDA refuses to wait for a whole GPU while a stream of it is captured
        self._device = call("cuDeviceGet", device_id)
        try:
            self._handle = call("cuDevicePrimaryCtxRetain", self._device)  # kept, as the runtime API keeps it
        except DriverError as error:
            raise UserError(f"device {device_id} cannot be used ({error}).") from None

    @contextmanager
    def current(self) -> Iterator[None]:
        before = call("cuCtxGetCurrent")
        if int(before) == int(self._handle):
            yield
            return
        call("cuCtxSetCurrent", self._handle)
        try:
            yield
        finally:
            call("cuCtxSetCurrent", before)

    @property
    def capability(self) -> str:
        """Compute capability, major and minor together ("86")."""
        return capability(self._device)

    def attribute(self, name: str) -> int:
        """A device attribute by the end of its name, such as "MULTIPROCESSOR_COUNT"."""
        return attribute(self._device, name)


def attribute(device: Any, name: str) -> int:
    """A device's attribute by the end of its name."""
    from cuda.bindings import driver

    key = getattr(driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", key, device))


def capability(device: Any) -> str:
    """A device's compute capability, major and minor together ("86")."""
    return "".join(str(attribute(device, f"COMPUTE_CAPABILITY_{part}")) for part in ("MAJOR", "MINOR"))


@functools.cache
def context(device_id: int) -> Context:
    """The GPU's context. Raises UserError for a number that no GPU has."""
    return Context(device_id)


def require_here(pointer: int, name: str) -> None:
    """Raise ValueError unless an address is memory that kernels of the current context may use: of its GPU, and of no
    other context there (`pycuda.autoinit` makes one), which would end this one with an illegal address."""
    from cuda.bindings import driver

    attributes, device = driver.CUpointer_attribute, int(call("cuCtxGetDevice"))
    try:
        ordinal = int(call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer))
        where = f"device {ordinal}"
    except DriverError:
        where = "memory that CUDA does not know"
    if where != f"device {device}":
        raise ValueError(f"{name}: expected memory of device {device}, got {where}")
    try:
        owner = int(call("cuPointerGetAttribute", attributes.CU_POINTER_ATTRIBUTE_CONTEXT, pointer))
    except DriverError:
        owner = 0
    if owner not in (0, int(call("cuCtxGetCurrent"))):  # memory of a pool has none
        raise ValueError(
            f"{name}: expected memory of device {device}'s primary context, got another context's "
            "(pycuda.autoprimaryctx takes the primary one, pycuda.autoinit does not)"
        )


def _words(driver: Any, status: Any) -> str:
    """What the driver says of a status, with its number, and what to do about it."""
    _, text = driver.cuGetErrorString(status)
    fix = FIXES.get(int(status))
    return f"{text.decode() if text else 'unknown error'} ({int(status)})" + (f": {fix}" if fix else "")
