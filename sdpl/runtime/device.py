"""The GPU as the runtime needs it: memory, pinned memory, copies, streams and graphs, through the driver API."""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpl.kernels.driver import DriverError, OutOfMemoryError, call, context

__all__ = ["BrokenCaptureError", "Cuda", "DriverError", "OutOfMemoryError", "Pinned"]


class BrokenCaptureError(RuntimeError):
    """A capture that something else ended, as `torch.cuda.synchronize` of another thread does: a later one may work."""


@dataclass(frozen=True)
class Pinned:
    """Page-locked host memory, which copies to and from the GPU need to run beside other work."""

    pointer: int
    array: np.ndarray  # uint8 [bytes]


class Cuda:
    """One GPU. Pointers, streams and graphs are plain addresses; every call raises on an error of the driver.

    Calls need the GPU's context: make them inside of `with cuda.current()`.
    """

    def __init__(self, device_id: int = 0):
        self.device_id = device_id
        self._context = context(device_id)

    def current(self) -> AbstractContextManager[None]:
        """Makes this GPU the calling thread's, and the one before it afterwards: CUDA keeps that per thread."""
        return self._context.current()

    def allocate(self, size: int) -> int:
        """Memory at an address that is a multiple of 256."""
        return int(call("cuMemAlloc", max(size, 1)))

    def free(self, pointer: int) -> None:
        call("cuMemFree", pointer)

    def allocate_pinned(self, size: int) -> Pinned:
        pointer = int(call("cuMemHostAlloc", max(size, 1), 0))
        return Pinned(pointer, np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(pointer)))

    def free_pinned(self, pinned: Pinned) -> None:
        call("cuMemFreeHost", pinned.pointer)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy in any direction: CUDA tells host from device by the address."""
        call("cuMemcpyAsync", target, source, size, stream)

    def make_stream(self) -> int:
        from cuda.bindings import driver

        return int(call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING.value))

    def destroy_stream(self, stream: int) -> None:
        call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        call("cuStreamSynchronize", stream)

    def synchronize_all(self) -> None:
        """Wait for everything on this GPU, and before that for captures of this process: CUDA would end both."""
        with self.no_captures():
            call("cuCtxSynchronize")

    def no_captures(self) -> AbstractContextManager[object]:
        """For what waits for the whole GPU, or may, as engines do while they compile and load: no other thread captures
        meanwhile."""
        return self._context.not_capturing

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """What `enqueue` puts on the stream, as a graph to replay. Raises BrokenCaptureError, and what `enqueue`
        raises."""
        with self.no_captures():
            graph = _captured(stream, enqueue)
        try:
            return int(call("cuGraphInstantiate", graph, 0))
        finally:
            call("cuGraphDestroy", graph)

    def replay(self, graph: int, stream: int) -> None:
        call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        call("cuGraphExecDestroy", graph)

    def free_bytes(self) -> int:
        return int(call("cuMemGetInfo")[0])


def _captured(stream: int, enqueue: Callable[[], None]) -> Any:
    from cuda.bindings import driver

    call("cuStreamBeginCapture", stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    try:
        enqueue()
    except BaseException as error:
        status, graph = driver.cuStreamEndCapture(stream)  # which alone knows why the engine or a call failed
        if graph is not None and int(graph):
            driver.cuGraphDestroy(graph)
        if isinstance(error, RuntimeError) and status == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
            raise BrokenCaptureError(str(error)) from None
        raise
    try:
        return call("cuStreamEndCapture", stream)
    except DriverError as error:
        if error.status == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED:
            raise BrokenCaptureError(str(error)) from None
        raise
