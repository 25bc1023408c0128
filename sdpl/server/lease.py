"""One request's hold on an engine: slots for its images, from reserving them to reading the results."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sdpl.server.arena import Arena, Geometry, Slots
from sdpl.server.channel import CANCELLED, DONE, EXPIRED
from sdpl.server.refusal import RefusalError

if TYPE_CHECKING:
    from sdpl.server.link import Link

GRACE_S = 10.0  # beyond its deadline a caller waits so long for an engine that says nothing


@dataclass(frozen=True)
class ModelInfo:
    """A bundle that an engine serves, as it announced it. line: its number in that engine; the same bundle loaded again
    has another."""

    index: int
    name: str
    line: int
    geometry: Geometry
    categories: tuple[str, ...]
    thresholds: np.ndarray  # [C]
    description: dict[str, Any]

    @property
    def version(self) -> str:
        """Models here have one version at a time."""
        return "1"


@dataclass(eq=False)
class Hold:
    """One line's slots in this front end."""

    info: ModelInfo
    arena: Arena
    slots: Slots
    leases: dict[int, "Lease"] = field(default_factory=dict)  # by slot, of rows that the engine has


class Lease:
    """Slots for the images of one request, from reserving to reading the results.

    Fill `memory` (or `images`), `await run(...)`, read `scores` and `attention`, and call `release` in any case.
    """

    def __init__(self, link: "Link", hold: Hold, start: int, rows: int):
        self.link, self.hold, self.start, self.rows = link, hold, start, rows
        self.wait_ns = self.run_ns = self.batch = 0
        self._open = 0  # rows that the engine has
        self._status = DONE
        self._released = False
        self._future: asyncio.Future[None] | None = None

    @property
    def memory(self) -> memoryview:
        size = self.hold.arena.geometry.image_bytes
        return self.hold.arena.bytes[self.start * size : (self.start + self.rows) * size]

    @property
    def images(self) -> np.ndarray:
        return self.hold.arena.images[self.start : self.start + self.rows]  # [B,S,S,3]

    @property
    def scores(self) -> np.ndarray:
        return self.hold.arena.scores[self.start : self.start + self.rows]  # [B,C]

    @property
    def attention(self) -> np.ndarray:
        return self.hold.arena.attention[self.start : self.start + self.rows]  # [B,C,h,w]

    def about(self) -> dict[str, Any]:
        """What the access log says of it, once it has been run."""
        return {
            "model": self.hold.info.name,
            "images": self.rows,
            "batch": self.batch,
            "wait_ms": round(self.wait_ns / 1e6, 3),
            "run_ms": round(self.run_ns / 1e6, 3),
        }

    async def run(self, attention: bool, deadline_ns: int) -> None:
        """Have the images scored. Raises RefusalError when they were not; CancelledError has them dropped."""
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        self.link.submit(self, attention, deadline_ns)
        self._open = self.rows
        late = loop.call_later((deadline_ns - time.monotonic_ns()) / 1e9 + GRACE_S, self._give_up)
        try:
            await self._future
        finally:
            late.cancel()

    def _give_up(self) -> None:
        """The engine, which drops what is late, has not said so."""
        if self._future is not None and not self._future.done():
            self._future.set_exception(RefusalError("deadline", "the engine did not answer before the deadline."))

    def release(self) -> None:
        """Give the slots back: now, or, while the engine still has some of them, when it answers."""
        self._released = True
        if self._open:
            self.link.cancel(self)
        else:
            self.link.give_back(self)

    def answered(self, status: int, wait_ns: int, run_us: int, batch: int) -> None:
        """One row's answer."""
        self._open -= 1
        self._status = self._status or status
        self.wait_ns, self.run_ns, self.batch = max(self.wait_ns, wait_ns), self.run_ns + run_us * 1000, batch
        if self._open:
            return
        if self._released:
            self.link.give_back(self)
        elif self._future is not None and not self._future.done():
            refused = self._refusal()
            self._future.set_exception(refused) if refused else self._future.set_result(None)

    def lost(self) -> None:
        """The engine died with these rows."""
        self._open = 0
        if self._released:
            self.link.give_back(self)
        elif self._future is not None and not self._future.done():
            self._future.set_exception(RefusalError("unavailable", "the engine was lost while it ran; try again.", 1))

    def _refusal(self) -> RefusalError | None:
        if self._status == EXPIRED:
            return RefusalError("deadline", "the deadline passed before the images could be run.")
        if self._status == CANCELLED:
            return RefusalError("unavailable", "the model was unloaded meanwhile.", 1)
        return (
            None
            if self._status == DONE
            else RefusalError("unavailable", "the engine failed on this batch; try again.", 1)
        )
