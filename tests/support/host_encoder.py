"""An encoder for the driver of host memory: the real graph in ONNX Runtime on the CPU, enqueued as a host function."""

import ctypes

import numpy as np
import onnxruntime

from sdpl.kernels.driver import call
from sdpl.runtime.device import OutOfMemoryError


def at(pointer: int, shape: tuple[int, ...], dtype=np.uint8) -> np.ndarray:
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), dtype).reshape(shape)


class HostEncoder:
    """As `sdpl.runtime.two_stage.Encoder`. outputs: what the graph gives. most, most_running: the largest batch that
    there is memory for."""

    def __init__(self, path, captured=True, outputs=("u", "g"), session=None):
        self.outputs = list(outputs)
        self.session = session or onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.captured, self.batches, self.closed, self.warm = captured, [], False, 0
        self.side, self.most, self.most_running = self.session.get_inputs()[0].shape[1], 1 << 20, 1 << 20
        self.allocates_while_running = False
        self.forgotten, self.left, self.errors, self.kept = [], [], [], []
        self.during = lambda: None  # called while a batch runs

    @classmethod
    def like(cls, other):
        """Another one of the same graph, which takes no time to make."""
        return cls(None, session=other.session)

    def prepare(self, batch, stream):
        if batch > self.most:
            raise OutOfMemoryError("no room for the engine's own memory")

    def forget(self, batch, stream):
        self.forgotten.append(batch)

    def leave(self, stream):
        self.left.append(stream)

    def enqueue(self, batch, image, outputs, stream):
        if batch > self.most_running:
            raise OutOfMemoryError("no room while running")
        assert not any(pointer % 256 for pointer in (image, *outputs)), "an engine takes no such address"
        if self.allocates_while_running:
            call("cuMemFree", call("cuMemAlloc", 16))

        def run(_):
            try:
                self.batches.append(batch)
                self.during()
                images = at(image, (batch, self.side, self.side, 3))
                for pointer, array in zip(outputs, self.session.run(self.outputs, {"image": images}), strict=True):
                    at(pointer, array.shape, array.dtype)[:] = array
            except BaseException as error:
                self.errors.append(error)

        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(run)
        self.kept.append(function)
        from cuda.bindings import driver

        call("cuLaunchHostFunc", stream, driver.CUhostFn(ctypes.cast(function, ctypes.c_void_p).value), 0)

    def capturable(self, stream):
        return self.captured

    def warmed(self):
        self.warm += 1

    def describe(self):
        return {"library": "onnxruntime on the host"}

    def close(self):
        self.closed = True
        assert not self.errors, self.errors
