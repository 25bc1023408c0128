"""Shared memory of one front end and one engine, for one model: slots for an image and its results.

The front end makes it and hands the file descriptor over; it lives as long as either process holds it, so a process
that dies leaves nothing behind. Images lie side by side, so neighbouring slots are one batch without copying.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np

PAGE = 4096


@dataclass(frozen=True)
class Geometry:
    """S image side, C categories, h and w of the attention map."""

    image_size: int
    categories: int
    map_size: tuple[int, int]

    @property
    def image_bytes(self) -> int:
        return self.image_size * self.image_size * 3

    @property
    def map_cells(self) -> int:
        return self.map_size[0] * self.map_size[1]

    @property
    def slot_bytes(self) -> int:
        """Of an image, its scores and its attention."""
        return self.image_bytes + 4 * self.categories * (1 + self.map_cells)


class Arena:
    """`count` slots. Memory is taken by the system when a slot is first used."""

    def __init__(self, fd: int, count: int, geometry: Geometry):
        """fd: of `make_memory(count, geometry)`; it may be closed afterwards."""
        self.count, self.geometry = count, geometry
        g = geometry
        self._memory = mmap.mmap(fd, _size(count, geometry))
        at = _offsets(count, geometry)
        self.bytes = memoryview(self._memory)[: count * g.image_bytes]  # all images, for receiving into
        images = np.frombuffer(self._memory, np.uint8, count * g.image_bytes, 0)
        scores = np.frombuffer(self._memory, np.float32, count * g.categories, at[0])
        attention = np.frombuffer(self._memory, np.float32, count * g.categories * g.map_cells, at[1])
        self.images = images.reshape(count, g.image_size, g.image_size, 3)  # [N,S,S,3]
        self.scores = scores.reshape(count, g.categories)  # [N,C]
        self.attention = attention.reshape(count, g.categories, *g.map_size)  # [N,C,h,w]


def fitting(memory: int, geometry: Geometry) -> int:
    """How many slots fit into so many bytes."""
    count = memory // geometry.slot_bytes
    while count and _size(count, geometry) > memory:  # each part of an arena begins a page
        count -= 1
    return count


def make_memory(count: int, geometry: Geometry) -> int:
    """A file descriptor of memory for `count` slots."""
    fd = os.memfd_create("sdpl-arena", os.MFD_CLOEXEC)
    os.ftruncate(fd, _size(count, geometry))
    return fd


class Slots:
    """Which slots of an arena are free. Hands out neighbours, so that one request is one piece of memory, and always
    the first that are free: memory used lately is in the caches, and requests in hand mostly are neighbours too."""

    def __init__(self, count: int):
        self._free = bytearray(b"\1" * count)
        self.used = 0

    def take(self, count: int) -> int | None:
        """The first of `count` free neighbours, which are then taken; None when there are not so many."""
        start = self._free.find(b"\1" * count)
        if start < 0:
            return None
        self._free[start : start + count] = bytes(count)
        self.used += count
        return start

    def give_back(self, start: int, count: int) -> None:
        self._free[start : start + count] = b"\1" * count
        self.used -= count


def _offsets(count: int, geometry: Geometry) -> tuple[int, int, int]:
    """Where scores and attention begin, and where all ends."""
    scores = _to_page(count * geometry.image_bytes)
    attention = scores + _to_page(count * geometry.categories * 4)
    return scores, attention, attention + _to_page(count * geometry.categories * geometry.map_cells * 4)


def _size(count: int, geometry: Geometry) -> int:
    return _offsets(count, geometry)[2]


def _to_page(size: int) -> int:
    return -(-size // PAGE) * PAGE
