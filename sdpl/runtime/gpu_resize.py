"""Decoded images of any sizes to the model's input without leaving the GPU, with the bits of `sdpl.preprocess`.

A batch goes up in one copy: pixels, weights and the kernel's tables of both passes. Then the two passes run, on the
stream that the copy is on; nothing waits for anything in between.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdpl.kernels.compile import resize_cubin
from sdpl.kernels.driver import call, context
from sdpl.kernels.launch import launch, load_module, supported
from sdpl.kernels.plan import Launch
from sdpl.preprocess.resize import Pass, passes
from sdpl.runtime.device import Cuda, Pinned

THREADS, BLOCKS = 256, 64  # per block; blocks per image
MOST_PIXELS = 1 << 22  # of one picture, before or between its passes: 12 MB
MOST_SIDE = 8192  # pixels: the weights of longer ones are not worth keeping
MOST_BYTES = 64 << 20  # that go up at once; a batch of more goes in parts
ALIGNMENT = 16
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


def fits(height: int, width: int, side: int) -> bool:
    """Whether a picture is small enough to be resized on a GPU, as photos are; others are a CPU's work."""
    return max(height, width) <= MOST_SIDE and _most_pixels(height, width, side) <= MOST_PIXELS


def _most_pixels(height: int, width: int, side: int) -> int:
    """Of a picture, before or between its passes."""
    return max(height, width) * max(min(height, width), side)


class Staging:
    """Memory of one stream for images on their way: pinned, to be filled; on the GPU as much, and room between the two
    passes. It is allocated once and grows; call with nothing running on the stream."""

    def __init__(self, device: Cuda):
        self._device = device
        self._pinned: Pinned | None = None
        self.pointer = self._size = 0

    def reserve(self, pinned: int, size: int) -> Pinned:
        """At least so many bytes of pinned memory, and on the GPU, at `pointer`. Raises OutOfMemoryError, and then has
        none of the two it could not get."""
        if self._pinned is None or len(self._pinned.array) < pinned:
            self._free_pinned()
            self._pinned = self._device.allocate_pinned(_rounded(pinned))
        if self._size < size:
            self._free_pointer()
            self.pointer = self._device.allocate(_rounded(size))
            self._size = _rounded(size)
        return self._pinned

    def free(self) -> None:
        """Give everything back. Safe to call twice."""
        self._free_pinned()
        self._free_pointer()

    def _free_pinned(self) -> None:
        if self._pinned is not None:
            self._device.free_pinned(self._pinned)
            self._pinned = None

    def _free_pointer(self) -> None:
        if self._size:
            self._device.free(self.pointer)
            self._size = 0


@dataclass(frozen=True)
class _Plan:
    """Where everything of some images lies in their staging, in bytes from its start: the kernel's tables first, then
    weights and pixels, which go up, then the images between their passes. Weights by the identity of their passes'."""

    steps: list[tuple[Pass, Pass]]
    weights: dict[int, tuple[int, np.ndarray]]
    sources: list[int]
    between: list[int]
    upload_bytes: int
    bytes: int


class GpuResize:
    """The resize kernel on one GPU. Calls may come from several threads, each with a stream and a staging of its own;
    they need the GPU's context."""

    def __init__(self, side: int, device: Cuda, code: bytes | None = None):
        """side: of the results, in pixels. code: the resize kernel's cubin for this GPU; None compiles one.

        Raises UserError when there is none and no NVRTC, and when the driver cannot load it.
        """
        self.side, self._device = side, device
        here = context(device.device_id)
        self._module: Any = load_module(here, code or resize_cubin(supported(here.capability)))
        self._lock = threading.Lock()
        with device.current():
            try:
                self._function = call("cuModuleGetFunction", self._module, b"resize_pass")
            except BaseException:
                self.close()
                raise

    def enqueue(self, target: int, images: Sequence[np.ndarray], staging: Staging, stream: int) -> None:
        """Fill uint8 [B,side,side,3] at an address on this GPU from decoded images, uint8 [H,W,3] each, on the host.

        The images are read before it returns; the result is there once the stream has come so far. Raises
        OutOfMemoryError, with the stream empty and the target undefined.
        """
        if self._module is None:
            raise RuntimeError("this resize is closed")
        done = 0
        for part in _parts(images, self.side):
            if done:
                self._device.synchronize(stream)  # the staging is filled anew
            self._enqueue_part(target + done * self.side * self.side * 3, part, staging, stream)
            done += len(part)

    def close(self) -> None:
        """Unload the code, once nothing runs. Safe to call twice."""
        with self._lock, self._device.current():
            if self._module is not None:
                call("cuModuleUnload", self._module)
                self._module = None

    def _enqueue_part(self, target: int, images: Sequence[np.ndarray], staging: Staging, stream: int) -> None:
        plan = _plan(images, self.side)
        pinned = staging.reserve(plan.upload_bytes, plan.bytes)
        base, host = staging.pointer, pinned.array
        table = np.zeros((2, len(images)), PASS)
        each = self.side * self.side * 3
        for i, (image, (one, two)) in enumerate(zip(images, plan.steps, strict=True)):
            source, between = base + plan.sources[i], base + plan.between[i]
            first, second = (base + plan.weights[id(step.weights)][0] for step in (one, two))
            shape = _after(image, one, self.side)
            table[0, i] = _row(source, between, first, image.shape[1], shape, one)
            table[1, i] = _row(between, target + i * each, second, shape[1], (self.side, self.side), two)
            _put(host, plan.sources[i], image)
        for offset, packed in plan.weights.values():
            _put(host, offset, packed)
        _put(host, 0, table)
        self._device.copy(base, pinned.pointer, plan.upload_bytes, stream)
        for row in range(2):
            rows = base + row * len(images) * PASS.itemsize
            launch(self._function, Launch("resize_pass", (BLOCKS, len(images), 1), THREADS), stream, (rows,))


def _parts(images: Sequence[np.ndarray], side: int) -> Iterator[list[np.ndarray]]:
    """The images in groups of which each goes up at once."""
    part: list[np.ndarray] = []
    size = 0
    for image in images:
        height, width = image.shape[:2]
        cost = 3 * _most_pixels(height, width, side)
        if part and size + cost > MOST_BYTES:
            yield part
            part, size = [], 0
        part.append(image)
        size += cost
    if part:
        yield part


def _plan(images: Sequence[np.ndarray], side: int) -> _Plan:
    steps = [passes(image.shape[0], image.shape[1], side) for image in images]
    offset = _aligned(2 * len(images) * PASS.itemsize)
    weights: dict[int, tuple[int, np.ndarray]] = {}
    for step in (step for both in steps for step in both):
        if id(step.weights) not in weights:  # `steps` keeps them, so no other gets the same identity
            weights[id(step.weights)] = (offset, step.weights.packed)
            offset += _aligned(step.weights.packed.nbytes)
    sources, between = [], []
    for image in images:
        sources.append(offset)
        offset += _aligned(image.nbytes)
    upload_bytes = offset
    for image, (one, _) in zip(images, steps, strict=True):
        height, width = _after(image, one, side)
        between.append(offset)
        offset += _aligned(3 * height * width)
    return _Plan(steps, weights, sources, between, upload_bytes, offset)


def _after(image: np.ndarray, step: Pass, side: int) -> tuple[int, int]:
    """Height and width of an image after a pass."""
    height, width = image.shape[:2]
    return (height, side) if step.axis else (side, width)


def _row(source: int, target: int, weights: int, source_width: int, shape: tuple[int, int], step: Pass) -> Any:
    """One image's row of a pass's table. shape: height and width of what the pass makes."""
    return (source, target, weights, source_width, *shape, step.weights.taps.shape[1], step.axis, 0)


def _put(host: np.ndarray, offset: int, array: np.ndarray) -> None:
    host[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _rounded(size: int) -> int:
    """The next power of two: so it grows a few times only."""
    return 1 << max(size - 1, 0).bit_length()
