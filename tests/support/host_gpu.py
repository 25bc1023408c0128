"""A GPU made of host memory, to run the two-stage backend on a machine without one.

Only the driver is replaced: memory is NumPy's, a graph replays the calls that were captured, the encoder's graph runs
in ONNX Runtime on the CPU, and the kernel's own source runs on the emulator. Every driver call is recorded.
"""

import ctypes
from collections import Counter
from typing import ClassVar

import numpy as np
import onnxruntime
from emulation import Emulated

from sdpl.kernels.launch import Kernels
from sdpl.runtime.device import OutOfMemoryError, Pinned

ITEM = {"float32": np.float32, "float16": np.float16}


def at(pointer: int, shape: tuple[int, ...], dtype=np.uint8) -> np.ndarray:
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), dtype).reshape(shape)


class HostDevice:
    """As `sdpl.runtime.device.Cuda`. limit: bytes that may be allocated on the device."""

    made: ClassVar[list] = []

    def __init__(self, limit: int = 1 << 40):
        self.made.append(self)
        self.limit, self.calls, self.memory, self.pinned, self.graphs = limit, Counter(), {}, {}, {}
        self.streams, self.refuses_capture = set(), False

    @property
    def used(self) -> int:
        return sum(array.size for array in self.memory.values())

    def use(self):
        self.calls["use"] += 1

    def allocate(self, size):
        if self.used + size > self.limit:
            raise OutOfMemoryError("the GPU has too little free memory")
        array = np.full(max(size, 1), 0xFF, np.uint8)  # NaN as floats
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, pointer):
        del self.memory[pointer]

    def allocate_pinned(self, size):
        array = np.full(max(size, 1), 0xFF, np.uint8)
        self.pinned[array.ctypes.data] = array
        return Pinned(array.ctypes.data, array)

    def free_pinned(self, pinned):
        del self.pinned[pinned.pointer]

    def copy(self, target, source, size, stream):
        self.calls["copy"] += 1
        at(target, (size,))[:] = at(source, (size,))

    def make_stream(self):
        self.streams.add(7)
        return 7

    def destroy_stream(self, stream):
        self.streams.remove(stream)

    def synchronize(self, stream):
        self.calls["synchronize"] += 1

    def synchronize_all(self):
        self.calls["synchronize_all"] += 1

    def capture(self, stream, enqueue):
        self.calls["capture"] += 1
        if self.refuses_capture:
            raise RuntimeError("cudaStreamEndCapture: operation failed due to a previous error during capture")
        handle = len(self.graphs) + 1
        self.graphs[handle] = enqueue
        return handle

    def replay(self, graph, stream):
        self.calls["replay"] += 1
        self.graphs[graph]()

    def destroy_graph(self, graph):
        del self.graphs[graph]


class HostEncoder:
    """An encoder graph in ONNX Runtime on the CPU, reading and writing at addresses."""

    def __init__(self, path, captured=True):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.captured, self.batches, self.closed = captured, [], False
        self.side, self.most, self.most_running = self.session.get_inputs()[0].shape[1], 1 << 20, 1 << 20
        self.forgotten = []

    def prepare(self, batch):
        if batch > self.most:
            raise OutOfMemoryError("no room for the engine's own memory")

    def forget(self, batch):
        self.forgotten.append(batch)

    def enqueue(self, batch, image, u, g, stream):
        assert stream == 7
        if batch > self.most_running:
            raise OutOfMemoryError("no room while running")
        self.batches.append(batch)
        images = at(image, (batch, self.side, self.side, 3))
        for pointer, array in zip((u, g), self.session.run(["u", "g"], {"image": images}), strict=True):
            at(pointer, array.shape, array.dtype)[:] = array

    def capturable(self, stream):
        return self.captured

    def describe(self):
        return {"library": "onnxruntime on the host"}

    def close(self):
        self.closed = True


class HostKernels(Kernels):
    """The launcher with all its checks; a launch runs on the emulator."""

    def __init__(self, dtype: str, program):
        self._emulated = Emulated(program, dtype)
        super().__init__(dtype)

    def _load(self, code, device_id):
        return 4, None

    def _function(self, entry):
        return entry

    def _enqueue(self, entry, plan, stream, arguments):
        assert stream == 7
        u, v, q, g, t, logits, attention, L, C, K, E, _eps = arguments
        batch, item = plan.grid[1], ITEM[self.dtype]
        arrays = [at(u, (batch, L, K), item), at(v, (C, K), item), at(q, (K,), np.float32)]
        arrays += [at(g, (batch, L, E), item), at(t, (C, E), np.float32)]
        results = self._emulated.launch_forward(plan, *arrays)
        at(logits, (batch, C), np.float32)[:] = results[0]
        if attention:
            at(attention, (batch, C, L), np.float32)[:] = results[1]
