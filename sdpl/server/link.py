"""A front end's side of one engine: which models it serves, slots to fill, rows to send, answers to await."""

import asyncio
import contextlib
import itertools
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdpl.server.arena import Arena, Geometry, Slots, fitting, make_memory
from sdpl.server.channel import (
    CANCEL,
    CANCELLED,
    DONE,
    EXPIRED,
    HEADER,
    RESULT,
    SUBMIT,
    WITH_ATTENTION,
    Channel,
    ClosedError,
    Message,
)
from sdpl.server.counters import Counters
from sdpl.server.refusal import RefusalError
from sdpl.server.settings import Settings

RETRY_S = 0.05
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


class Link:
    """The connection to one engine; it is made again whenever it is lost."""

    def __init__(self, path: str, settings: Settings, counters: Counters):
        """path: of the engine's Unix socket."""
        self._path, self._settings, self._counters = path, settings, counters
        self._names = list(settings.models)
        self._channel: Channel | None = None
        self._holds: dict[int, Hold] = {}  # by line
        self.models: dict[str, ModelInfo] = {}  # ready, by name
        self.states: dict[str, str] = {}  # of models that were heard of: "ready", "failed" or "unloaded"
        self.reasons: dict[str, str] = {}  # why a model is not ready, or its newest bundle was not taken
        self._orders: dict[int, asyncio.Future[str]] = {}  # to load and unload, whose answers are to come
        self._numbers = itertools.count(1)
        self.in_hand = 0
        self._writing = False
        self._unheard: int | None = None  # an announcement whose consequences are not done with

    @property
    def connected(self) -> bool:
        return self._channel is not None

    async def run(self) -> None:
        """Keep the connection up, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, self._path)
            except OSError:
                sock.close()
                await asyncio.sleep(RETRY_S)
                continue
            lost = loop.create_future()
            self._channel = Channel(sock)
            loop.add_reader(sock, self._read, lost)
            try:
                await lost
            finally:
                self._disconnect(loop)

    def admit(self, info: ModelInfo, rows: int) -> float:
        """The seconds that so many images would wait. Raises RefusalError when that is too long."""
        hold = self._holds.get(info.line)
        if hold is None:
            raise RefusalError("unavailable", f"{info.name}: its engine is being restarted; try again.", 1)
        if rows > hold.arena.count:
            raise RefusalError("too_large", f"{rows} images in one request; this server holds {hold.arena.count}.")
        wait = self.estimated_wait_s() + rows * self._counters.largest(info.index, "seconds_per_image")
        if self.in_hand and wait > self._settings.max_wait_ms / 1000:
            raise RefusalError(
                "overloaded",
                f"overloaded: a new request would wait about {wait:.1f} s (limit {self._settings.max_wait_ms:g} ms).",
                max(1, math.ceil(wait - self._settings.max_wait_ms / 1000)),
            )
        return wait

    def lease(self, info: ModelInfo, rows: int) -> "Lease":
        """Slots for so many images, side by side. Raises RefusalError when they are not to be had now."""
        wait = self.admit(info, rows)
        hold = self._holds[info.line]
        start = hold.slots.take(rows)
        if start is None:
            raise RefusalError(
                "overloaded", "overloaded: no memory is free for more images now.", max(1, math.ceil(wait))
            )
        self._change_in_hand(info.index, rows)
        return Lease(self, hold, start, rows)

    def estimated_wait_s(self) -> float:
        """What all images in hand, of all front ends, will take, shared by the engines."""
        counters, engines = self._counters, len(self._settings.devices)
        models = range(len(self._names))
        return sum(counters.total(m, "in_hand") * counters.largest(m, "seconds_per_image") for m in models) / engines

    def order(self, content: dict[str, Any]) -> "asyncio.Future[str]":
        """Send {"load": model} or {"unload": model}: why it was not done, "" when it was. Awaiting it raises
        RefusalError when the engine is lost before it answers."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        number = next(self._numbers)
        self._orders[number] = future
        self._guarded(lambda channel: channel.control({**content, "order": number}))
        return future

    # What leases do

    def submit(self, lease: "Lease", attention: bool, deadline_ns: int) -> None:
        hold, info = lease.hold, lease.hold.info
        if self._channel is None or self._holds.get(info.line) is not hold:
            raise RefusalError("unavailable", f"{info.name}: its engine was restarted meanwhile; try again.", 1)
        status, now = WITH_ATTENTION if attention else 0, time.monotonic_ns()
        packed = []
        for slot in range(lease.start, lease.start + lease.rows):
            hold.leases[slot] = lease
            packed.append(HEADER.pack(SUBMIT, status, info.index, slot, info.line, deadline_ns, now))
        self._guarded(lambda channel: channel.send(b"".join(packed)))

    def cancel(self, lease: "Lease") -> None:
        info = lease.hold.info
        slots = range(lease.start, lease.start + lease.rows)
        packed = b"".join(HEADER.pack(CANCEL, 0, info.index, slot, info.line, 0, 0) for slot in slots)
        self._guarded(lambda channel: channel.send(packed))

    def give_back(self, lease: "Lease") -> None:
        lease.hold.slots.give_back(lease.start, lease.rows)
        if self._unheard is not None:
            self._forget_old()
        self._change_in_hand(lease.hold.info.index, -lease.rows)

    # The connection

    def _change_in_hand(self, model: int, rows: int) -> None:
        self.in_hand += rows
        self._counters.add(model, "in_hand", rows)

    def _guarded(self, send: Callable[[Channel], None]) -> None:
        """Send, and have the rest sent when the socket takes more. A lost connection is noticed by the reader."""
        channel = self._channel
        if channel is None:
            return
        with contextlib.suppress(ClosedError):
            send(channel)
            self._watch(channel)

    def _watch(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        if channel.waiting and not self._writing:
            loop.add_writer(channel.sock, self._flush, channel)
        elif self._writing and not channel.waiting:
            loop.remove_writer(channel.sock)
        self._writing = channel.waiting

    def _flush(self, channel: Channel) -> None:
        with contextlib.suppress(ClosedError):
            channel.flush()
        self._watch(channel)

    def _read(self, lost: "asyncio.Future[None]") -> None:
        assert self._channel is not None
        try:
            for message in self._channel.receive():
                if message.kind == RESULT:
                    self._result(message)
                elif "order" in message.content:
                    future = self._orders.pop(message.content["order"])
                    if not future.done():  # nobody waits any more
                        future.set_result(message.content["reason"])
                else:
                    self._announced(message.content)
        except ClosedError:
            if not lost.done():
                lost.set_result(None)

    def _result(self, message: Message) -> None:
        hold = self._holds.get(message.a)
        lease = hold.leases.pop(message.slot, None) if hold else None
        if lease is not None:
            lease.answered(message.status, message.b, message.c >> 16, message.c & 0xFFFF)

    def _announced(self, content: dict[str, Any]) -> None:
        index, serving = content["model"], content["serving"]
        name = self._names[index]
        self.models.pop(name, None)
        self.states[name], self.reasons[name] = content["state"], content["reason"]
        if serving is not None:
            side, categories, map_size = serving["geometry"].values()
            info = ModelInfo(
                index=index,
                name=name,
                line=content["line"],
                geometry=Geometry(side, categories, tuple(map_size)),
                categories=tuple(serving["categories"]),
                thresholds=np.array(serving["thresholds"]),
                description=serving,
            )
            self.models[name] = info
            if info.line not in self._holds:
                self._attach(info)
        self._unheard = content["announcement"]
        self._forget_old()

    def _attach(self, info: ModelInfo) -> None:
        """Make slots for a model and share them with the engine."""
        g = info.geometry
        count = fitting(self._settings.arena_bytes, g)
        fd = make_memory(count, g)
        hold = Hold(info, Arena(fd, count, g), Slots(count))
        self._holds[info.line] = hold
        shape = (g.image_size, g.categories, g.map_size)
        self._guarded(lambda c: c.control({"arena": (info.line, count, shape)}, (fd,)))

    def _forget_old(self) -> None:
        """Drop slots of lines that are gone once nobody uses them; only then the engine may close those."""
        current = {info.line for info in self.models.values()}
        for key in [key for key, hold in self._holds.items() if key not in current and hold.slots.used == 0]:
            del self._holds[key]
        if self._unheard is not None and self._holds.keys() <= current:
            heard, self._unheard = self._unheard, None
            self._guarded(lambda channel: channel.control({"heard": heard}))

    def _disconnect(self, loop: asyncio.AbstractEventLoop) -> None:
        """The engine is gone: what it had in its hands is answered now."""
        assert self._channel is not None
        loop.remove_reader(self._channel.sock)
        if self._writing:
            loop.remove_writer(self._channel.sock)
        self._channel.close()
        self._channel, self._writing, self._unheard = None, False, None
        holds, self._holds = self._holds, {}
        self.reasons = dict.fromkeys(self._names, "its engine is being restarted")
        self.models, self.states = {}, {}
        orders, self._orders = self._orders, {}
        for future in orders.values():
            if not future.done():
                future.set_exception(RefusalError("unavailable", "the engine was lost meanwhile; try again.", 1))
        for hold in holds.values():
            for lease in set(hold.leases.values()):
                lease.lost()


class Lease:
    """Slots for the images of one request, from reserving to reading the results.

    Fill `memory` (or `images`), `await run(...)`, read `scores` and `attention`, and call `release` in any case.
    """

    def __init__(self, link: Link, hold: Hold, start: int, rows: int):
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
