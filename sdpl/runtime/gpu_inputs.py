"""How a batch's images come to the GPU: pixels of the model's size on the host, decoded pictures of any sizes, or
images that are there already. Each is an `Input`, whose images are placed bucket by bucket.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sdpl.kernels.arrays import is_contiguous
from sdpl.kernels.driver import require_here
from sdpl.preprocess import squash
from sdpl.runtime.device import Cuda, OutOfMemoryError
from sdpl.runtime.gpu_resize import GpuResize
from sdpl.runtime.slots import Bucket, Slot


class Input(Protocol):
    """Images of one call."""

    def __len__(self) -> int:
        """How many."""

    def place(self, slot: Slot, bucket: Bucket, start: int, count: int) -> None:
        """Enqueue what brings some of them into the bucket's buffer. Raises OutOfMemoryError."""


class HostPixels:
    """uint8 [B,S,S,3] on the host."""

    def __init__(self, images: np.ndarray, device: Cuda):
        self._images, self._device = np.ascontiguousarray(images), device

    def __len__(self) -> int:
        return len(self._images)

    def place(self, slot: Slot, bucket: Bucket, start: int, count: int) -> None:
        some = self._images[start : start + count].reshape(-1)
        if "image" not in bucket.pinned:
            bucket.pinned["image"] = self._device.allocate_pinned(some.size // count * bucket.batch)
        pinned = bucket.pinned["image"]
        pinned.array[: some.size] = some
        self._device.copy(bucket.pointers["image"], pinned.pointer, some.size, slot.stream)


class DecodedImages:
    """Decoded pictures on the host, uint8 [H,W,3] of any sizes, resized on the GPU; where it has no room for that, on
    the CPU, to the same bits."""

    def __init__(self, images: Sequence[np.ndarray], resize: GpuResize, device: Cuda):
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise ValueError(f"expected decoded images uint8 [H,W,3], got {image.dtype} {list(image.shape)}")
        self._images, self._resize, self._device = images, resize, device

    def __len__(self) -> int:
        return len(self._images)

    def place(self, slot: Slot, bucket: Bucket, start: int, count: int) -> None:
        some = self._images[start : start + count]
        try:
            self._resize.enqueue(bucket.pointers["image"], some, slot.staging, slot.stream)
        except OutOfMemoryError:
            self._device.synchronize(slot.stream)
            slot.staging.free()  # half of it is of no use
            pixels = np.stack([squash(Image.fromarray(image), self._resize.side) for image in some])
            HostPixels(pixels, self._device).place(slot, bucket, 0, count)


class OnGpu:
    """uint8 [B,S,S,3] on this GPU, of any library that shares its memory. Copied into the bucket there, since an
    engine's context and the graph captured from it belong to one address."""

    def __init__(self, images: Any, device: Cuda):
        """Waits for what makes the images. Raises ValueError for gaps in them, and for images on another GPU."""
        self._address, self._count = _address(images, device), int(images.shape[0])
        self._each = int(np.prod(images.shape[1:]))
        self._device = device

    def __len__(self) -> int:
        return self._count

    def place(self, slot: Slot, bucket: Bucket, start: int, count: int) -> None:
        source = self._address + start * self._each
        self._device.copy(bucket.pointers["image"], source, count * self._each, slot.stream)


def _address(images: Any, device: Cuda) -> int:
    """The address of images on the GPU, once what makes them is done."""
    interface = images.__cuda_array_interface__
    address, shape, strides = int(interface["data"][0]), tuple(interface["shape"]), interface.get("strides")
    if not is_contiguous(shape, strides, 1):
        raise ValueError(f"expected contiguous images on the GPU, got strides {tuple(strides)} for shape {shape}")
    if 0 not in shape:  # an empty array has no address
        require_here(address, "images")
    if interface.get("stream"):
        device.synchronize(interface["stream"])
    elif interface.get("version", 0) < 3:  # PyTorch's: it does not say which stream is still writing
        device.synchronize_all()
    return address
