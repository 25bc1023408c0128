"""Where batches run: slots, each with a stream and buffers of its own, so that callers overlap.

While one batch runs in its slot, the next one is copied into the other's, and runs beside it. One caller alone only
ever uses the first slot, so the second costs memory only where callers overlap.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sdpl.runtime.device import Cuda, Pinned
from sdpl.runtime.gpu_resize import Staging

SLOTS = 2


@dataclass
class Bucket:
    """What one batch size needs on the GPU. graphs: None for what cannot be captured; broken: captures so far that
    something else ended."""

    batch: int
    pointers: dict[str, int]
    pinned: dict[str, Pinned]
    graphs: dict[str, int | None] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)

    def free(self, device: Cuda) -> None:
        for graph in self.graphs.values():
            if graph is not None:
                device.destroy_graph(graph)
        for pointer in self.pointers.values():
            device.free(pointer)
        for pinned in self.pinned.values():
            device.free_pinned(pinned)


@dataclass
class Slot:
    """A stream, the staging of images that are resized on it, and the buckets whose graphs run on it, by batch size."""

    index: int
    stream: int
    staging: Staging
    buckets: dict[int, Bucket] = field(default_factory=dict)

    def free(self, device: Cuda) -> None:
        """Give everything back but the stream."""
        for bucket in self.buckets.values():
            bucket.free(device)
        self.buckets.clear()
        self.staging.free()


class Slots:
    """The slots of one recognizer; `take` lends one of them, and waits while all are lent."""

    def __init__(self, device: Cuda):
        self.all: list[Slot] = []
        self._free: list[Slot] = []
        self._open = True
        self._changed = threading.Condition()
        try:
            for index in range(SLOTS):
                self.all.append(Slot(index, device.make_stream(), Staging(device)))
        except BaseException:
            self.destroy(device)
            raise
        self._free.extend(self.all)

    @contextmanager
    def take(self, first: bool = False) -> Iterator[Slot]:
        """Lend a free slot, the first one where there is a choice. first: that one and no other.

        Raises RuntimeError once these slots are closed.
        """
        with self._changed:
            while True:
                if not self._open:
                    raise RuntimeError("this recognizer is closed")
                fitting = [slot for slot in self._free if not first or slot is self.all[0]]
                if fitting:
                    break
                self._changed.wait()
            slot = min(fitting, key=lambda each: each.index)
            self._free.remove(slot)
        try:
            yield slot
        finally:
            with self._changed:
                self._free.append(slot)
                self._changed.notify_all()

    def retire(self) -> list[Slot]:
        """Go down to the first slot, which the caller has, once the others are free: for a GPU that is full. The
        slots that are now out of use, whose memory is the caller's to free."""
        with self._changed:
            others = self.all[1:]
            while not all(slot in self._free for slot in others):
                self._changed.wait()
            self._free = [slot for slot in self._free if slot not in others]
            self.all = self.all[:1]
        return others

    def destroy(self, device: Cuda) -> None:
        """Destroy the streams of slots that were never used."""
        for slot in self.all:
            device.destroy_stream(slot.stream)

    def close(self) -> list[Slot]:
        """Lend no slot any more; all slots, once they are back. Nothing the second time."""
        with self._changed:
            self._open = False
            while len(self._free) < len(self.all):
                self._changed.wait()
            slots, self.all, self._free = self.all, [], []
            self._changed.notify_all()
        return slots
