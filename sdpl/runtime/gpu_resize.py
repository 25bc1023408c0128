"""Decoded images of any sizes to the model's input without leaving the GPU, with the bits of `sdpl.preprocess`."""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sdpl.kernels.compile import resize_cubin
from sdpl.kernels.driver import call, context
from sdpl.kernels.launch import Launch, launch, load_module, supported
from sdpl.preprocess.resize import Pass, passes
from sdpl.runtime.device import Cuda

THREADS, BLOCKS = 256, 64  # per block; blocks per image
PASS = np.dtype(  # the kernel's ResizePass
    [
        ("source", np.uint64),
        ("target", np.uint64),
        ("weights", np.uint64),
        ("source_width", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("taps", np.int32),
        ("along_rows", np.int32),
        ("unused", np.int32),
    ]
)


class GpuResize:
    """Resizes batches on one GPU. Calls take turns; a call returns when its result is there."""

    def __init__(self, side: int, device: Cuda, code: bytes | None = None):
        """side: of the results, in pixels. code: the resize kernel's cubin for this GPU; None compiles one.

        Raises UserError when there is none and no NVRTC, and when the driver cannot load it.
        """
        self.side, self._device = side, device
        here = context(device.device_id)
        self._module: Any = load_module(here, code or resize_cubin(supported(here.capability)))
        with device.current():
            self._function = call("cuModuleGetFunction", self._module, b"resize_pass")
            self._stream = device.make_stream()
        self._lock = threading.Lock()

    def into(self, target: int, images: Sequence[np.ndarray]) -> None:
        """Fill uint8 [B,side,side,3] at an address on this GPU from decoded images, uint8 [H,W,3] each, on the host.

        Raises OutOfMemoryError, and then nothing of the call is left on the GPU.
        """
        steps = [passes(image.shape[0], image.shape[1], self.side) for image in images]
        with self._lock, self._device.current(), self._memory() as take:
            each = self.side * self.side * 3
            uploaded = functools.cache(lambda index, which: take(steps[index][which].weights.packed()))
            table = np.zeros((2, len(images)), PASS)
            for i, (image, (one, two)) in enumerate(zip(images, steps, strict=True)):
                shape = list(image.shape[:2])
                shape[one.axis] = self.side
                scratch = take(3 * shape[0] * shape[1])
                source = take(np.ascontiguousarray(image))
                table[0, i] = _row(source, scratch, uploaded(i, 0), image.shape[1], (shape[0], shape[1]), one)
                table[1, i] = _row(scratch, target + i * each, uploaded(i, 1), shape[1], (self.side, self.side), two)
            for row in table if images else ():
                plan = Launch("resize_pass", (BLOCKS, len(images), 1), THREADS)
                launch(self._function, plan, self._stream, (take(row),))
            self._device.synchronize(self._stream)

    def close(self) -> None:
        """Free everything. Safe to call twice."""
        with self._lock, self._device.current():
            if self._module is not None:
                self._device.destroy_stream(self._stream)
                call("cuModuleUnload", self._module)
                self._module = None

    @contextmanager
    def _memory(self) -> Iterator[Any]:
        """take(array) uploads an array, take(bytes) only takes memory; both give an address, and it is freed at the
        end, once nothing runs on the stream any more."""
        taken: list[int] = []
        pinned: list[Any] = []

        def take(what: np.ndarray | int) -> int:
            size = what if isinstance(what, int) else what.nbytes
            taken.append(self._device.allocate(size))
            if not isinstance(what, int):
                pinned.append(self._device.allocate_pinned(size))
                pinned[-1].array[:size] = what.reshape(-1).view(np.uint8)
                self._device.copy(taken[-1], pinned[-1].pointer, size, self._stream)
            return taken[-1]

        if self._module is None:
            raise RuntimeError("this resize is closed")
        try:
            yield take
        finally:
            self._device.synchronize(self._stream)
            for pointer in taken:
                self._device.free(pointer)
            for each in pinned:
                self._device.free_pinned(each)


def _row(source: int, target: int, weights: int, source_width: int, shape: tuple[int, int], step: Pass) -> Any:
    """One image's row of a pass's table. shape: height and width of what the pass makes."""
    return (source, target, weights, source_width, *shape, step.weights.taps.shape[1], step.axis, 0)
