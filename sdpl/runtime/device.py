"""The GPU as the runtime needs it: memory, pinned memory, copies, streams and graphs, through NVIDIA's cuda-python."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpl.errors import UserError


class OutOfMemoryError(UserError):
    """The GPU has too little free memory for what was asked."""


@dataclass(frozen=True)
class Pinned:
    """Page-locked host memory, which copies to and from the GPU need to run beside other work."""

    pointer: int
    array: np.ndarray  # uint8 [bytes]


class Cuda:
    """One GPU. Pointers, streams and graphs are plain addresses; every call raises on an error of the driver."""

    def __init__(self, device_id: int = 0):
        from cuda.bindings import runtime

        self._api = runtime
        self._device_id = device_id
        self.use()

    def use(self) -> None:
        """Make this GPU the calling thread's: CUDA keeps that per thread."""
        self._call("cudaSetDevice", self._device_id)

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> Pinned:
        pointer = int(self._call("cudaHostAlloc", max(size, 1), self._api.cudaHostAllocDefault))
        return Pinned(pointer, np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(pointer)))

    def free_pinned(self, pinned: Pinned) -> None:
        self._call("cudaFreeHost", pinned.pointer)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Enqueue a copy in any direction: CUDA tells host from device by the address."""
        self._call("cudaMemcpyAsync", target, source, size, self._api.cudaMemcpyKind.cudaMemcpyDefault, stream)

    def make_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def synchronize_all(self) -> None:
        """Wait for everything on this GPU."""
        self._call("cudaDeviceSynchronize")

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """What `enqueue` puts on the stream, as a graph to replay."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            _, graph = self._api.cudaStreamEndCapture(stream)  # its own status would hide the first error
            if graph is not None and int(graph):
                self._api.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def replay(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo")[0])

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._api, name)(*arguments)
        if status == self._api.cudaError_t.cudaErrorMemoryAllocation:
            raise OutOfMemoryError(
                f"the GPU has too little free memory ({self.free_bytes() >> 20} MB): use a smaller batch, or close "
                "other programs on it."
            )
        if int(status) != 0:
            raise RuntimeError(f"{name}: {self._api.cudaGetErrorString(status)[1].decode()}")
        return results[0] if len(results) == 1 else results
