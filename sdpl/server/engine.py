"""The engine process: one device, all models. Takes rows from the front ends, batches, runs, and answers each row once.

One thread does everything but loading: between two batches it reads what has come in, drops what is late or cancelled,
and takes the next batch. A bundle is opened and proved in a second thread (`loading.py`) while the old one serves.
"""

import itertools
import os
import selectors
import socket
import sys
import time
from collections.abc import Collection
from typing import Any

from sdpl.errors import UserError
from sdpl.runtime.environment import gpu_used_mb
from sdpl.server.arena import Arena, Geometry
from sdpl.server.batcher import Batcher
from sdpl.server.channel import (
    CANCEL,
    CANCELLED,
    CONTROL,
    DONE,
    EXPIRED,
    FAILED,
    HEADER,
    RESULT,
    SUBMIT,
    WITH_ATTENTION,
    Channel,
    ClosedError,
    Message,
)
from sdpl.server.counters import Counters
from sdpl.server.fronts import Front, Fronts
from sdpl.server.line import Line, Row, count, score
from sdpl.server.loading import Loading, Tell
from sdpl.server.serving import Serving, make_ready
from sdpl.server.settings import Settings
from sdpl.server.watchdog import LOOK_S, SLOWER

FAILURES_IN_A_ROW = 3  # calls of the engine that fail before the process gives up and is started anew


class Engine:
    """Serves front ends on a listening Unix socket until `control` says stop or closes."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        control: Channel,
        counters: Counters,
        unloaded: Collection[int] = (),
    ):
        """unloaded: models that were taken out of service before this process was started."""
        self._settings, self._counters, self._unloaded = settings, counters, unloaded
        self._names, self._paths = list(settings.models), list(settings.models.values())
        self._listener, self._control, self._fronts = listener, control, Fronts(listener)
        self._current: dict[int, Line] = {}  # by model
        self._retiring: list[Line] = []
        self._states: dict[int, dict[str, Any]] = {}  # the last announcement of each model
        self._announced = 0
        self._numbers = itertools.count(1)
        self._failed_in_a_row = 0
        self._loading = Loading(self._make, self._wake)
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._rounds = 0
        self._stopping = False

    def run(self) -> None:
        self._loading.start()
        for model in range(len(self._names)):
            if model in self._unloaded:
                self._unload(model)
            else:
                self._loading.load(model)
        for each in (self._control, self._wake_out):
            self._fronts.selector.register(each, selectors.EVENT_READ)
        while not self._stopping:
            self._rounds += 1
            self._counters.get_on(self._rounds)
            self._read(self._pause())
            self._loading.retry()
            self._take_loaded()
            self._drop()
            line = self._next_line()
            if line is not None:
                self._run_batch(line)
            self._retire()

    # What comes in

    def _pause(self) -> float:
        """Seconds to wait for messages: none while a batch may leave, and no longer than between two looks at it."""
        times = [at / 1e9 for line in self._lines() if (at := line.batcher.ready_at()) is not None]
        if (retry := self._loading.next_retry) is not None:
            times.append(retry)
        return max(0.0, min(LOOK_S, *(at - time.monotonic() for at in times))) if times else LOOK_S

    def _read(self, timeout: float) -> None:
        for key, events in self._fronts.selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake_out:
                self._wake_out.recv(4096)
            elif key.fileobj is self._control:
                self._obey()
            else:
                self._hear(self._fronts.of(key.fd), events)

    def _accept(self) -> None:
        front = self._fronts.accept()
        if front is not None:
            for state in self._states.values():
                self._fronts.tell(front, state)

    def _obey(self) -> None:
        """The supervisor's word; its end is the end."""
        try:
            for message in self._control.receive():
                self._command(message.content)
        except ClosedError:
            self._stopping = True

    def _command(self, content: dict[str, Any], tell: Tell | None = None) -> None:
        """{"load": model} or {"unload": model} as asked for, {"replaced": model} when it is another on disk."""
        if "load" in content:
            self._loading.load(content["load"], tell)
        if "replaced" in content:
            self._loading.replaced(content["replaced"])
        if "unload" in content:
            self._unload(content["unload"])
            if tell is not None:
                tell("")

    def _hear(self, front: Front, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._fronts.flush(front)
            if events & selectors.EVENT_READ:
                for message in front.channel.receive():
                    self._take(front, message)
        except ClosedError:
            self._lose(front)

    def _take(self, front: Front, message: Message) -> None:
        if message.kind == CONTROL:
            self._take_control(front, message)
            return
        line = next((line for line in self._lines() if line.number == message.a), None)
        if message.kind == SUBMIT:
            if line is None:  # it was unloaded while this was on its way
                self._answer(front, message.model, message.slot, message.a, CANCELLED)
                return
            row = Row(front, message.slot, bool(message.status & WITH_ATTENTION))
            line.batcher.add(row, message.c, message.b)
        elif message.kind == CANCEL and line is not None:
            for attention in (False, True):
                line.batcher.cancel(Row(front, message.slot, attention))

    def _take_control(self, front: Front, message: Message) -> None:
        content = message.content
        if "arena" in content:
            line, count, (side, categories, map_size) = content["arena"]
            front.arenas[line] = Arena(message.fds[0], count, Geometry(side, categories, tuple(map_size)))
            for fd in message.fds:
                os.close(fd)
        front.heard = max(front.heard, content.get("heard", 0))
        if "order" in content:  # to load or unload, from a caller that waits for it
            order = content["order"]
            self._command(content, lambda reason: self._fronts.tell(front, {"order": order, "reason": reason}))

    def _lose(self, front: Front) -> None:
        self._fronts.lose(front)
        for line in self._lines():
            line.batcher.remove(lambda row: row.front is front)

    # What goes out

    def _answer(self, front: Front, model: int, slot: int, line: int, status: int) -> None:
        self._fronts.send(front, HEADER.pack(RESULT, status, model, slot, line, 0, 0))

    def _announce(self, model: int, reason: str, state: str = "") -> None:
        """Tell all front ends, and the supervisor, what a model is now: "ready", "failed" or "unloaded"."""
        self._announced += 1
        line = self._current.get(model)
        state = state or ("ready" if line is not None else "failed")
        content = {
            "model": model,
            "announcement": self._announced,
            "line": line.number if line else 0,
            "serving": line.serving.describe() if line else None,
            "state": state,
            "reason": reason,
        }
        self._states[model] = content
        self._counters.set_server("gpu_used_bytes", 1e6 * (gpu_used_mb() or 0))
        for front in self._fronts:
            self._fronts.tell(front, content)
        self._control.control({"model": model, "state": state, "reason": reason})

    # Models

    def _make(self, model: int) -> Serving:
        """In the thread that loads. Raises UserError."""
        path = self._paths[model]
        try:
            return make_ready(path, self._settings)
        except UserError:
            raise
        except Exception as error:  # a library's own; it is told, and the server goes on
            raise UserError(f"{path}: {type(error).__name__}: {error}") from error

    def _wake(self) -> None:
        self._wake_in.send(b"\0")

    def _lines(self) -> list[Line]:
        return [*self._current.values(), *self._retiring]

    def _unload(self, model: int) -> None:
        self._loading.unload(model)
        self._retire_current(model)
        self._announce(model, "unloaded on request", "unloaded")

    def _take_loaded(self) -> None:
        for job in self._loading.finished():
            if isinstance(job.result, Serving):
                self._swap(job.model, job.result)
                job.tell("")
                continue
            assert job.result is not None
            if job.model in self._current:
                self._counters.add(job.model, "reload_failures")
            else:
                self._loading.retry_later(job.model)
            self._announce(job.model, job.result)
            job.tell(job.result)

    def _swap(self, model: int, serving: Serving) -> None:
        current = self._current.get(model)
        if current is not None and current.serving.generation == serving.generation:
            serving.recognizer.close()
            self._announce(model, "")
            return
        if current is not None:
            self._counters.add(model, "reloads")
        self._retire_current(model)
        batcher: Batcher[Row] = Batcher(serving.batch_sizes, int(self._settings.max_delay_ms * 1e6))
        self._current[model] = Line(next(self._numbers), model, serving, batcher)
        self._counters.set(model, "seconds_per_image", serving.seconds_per_image)
        self._announce(model, "")

    def _retire_current(self, model: int) -> None:
        line = self._current.pop(model, None)
        if line is not None:
            line.retired_at = self._announced + 1  # the announcement that comes next
            self._retiring.append(line)

    def _retire(self) -> None:
        """Close lines that no front end can send rows for any more."""
        for line in list(self._retiring):
            heard = min((front.heard for front in self._fronts), default=line.retired_at or 0)
            if len(line.batcher) == 0 and heard >= (line.retired_at or 0):
                self._retiring.remove(line)
                line.serving.recognizer.close()
                for front in self._fronts:
                    front.arenas.pop(line.number, None)

    # Batches

    def _drop(self) -> None:
        now = time.monotonic_ns()
        for line in self._lines():
            for rows, status in zip(line.batcher.drop(now), (EXPIRED, CANCELLED), strict=True):
                for row in rows:
                    self._answer(row.front, line.model, row.slot, line.number, status)
            self._counters.set(line.model, "queued", len(line.batcher))

    def _next_line(self) -> Line | None:
        """Of the lines whose batch may leave, the one whose oldest row waits longest."""
        now = time.monotonic_ns()
        ready = [line for line in self._lines() if (at := line.batcher.ready_at()) is not None and at <= now]
        return min(ready, key=lambda line: line.batcher.oldest or 0, default=None)

    def _run_batch(self, line: Line) -> None:
        batch = line.batcher.take()
        model = line.model
        rows = [row for row, _ in batch]
        self._counters.get_on(self._rounds + 0.5, SLOWER * line.serving.seconds_per_image * len(rows))
        start = time.monotonic_ns()
        try:
            score(line, rows)
            status, self._failed_in_a_row = DONE, 0
        except Exception as error:  # a GPU that is gone, no memory: the rows are answered, and the process lives on
            status, self._failed_in_a_row = FAILED, self._failed_in_a_row + 1
            print(f"{self._names[model]}: the engine failed: {type(error).__name__}: {error}", file=sys.stderr)
        run_ns = time.monotonic_ns() - start
        by_front: dict[int, list[bytes]] = {}
        fronts = {id(row.front): row.front for row in rows}
        c = min(run_ns // 1000, (1 << 46) - 1) << 16 | len(rows)
        for row, arrival in batch:
            packed = HEADER.pack(RESULT, status, model, row.slot, line.number, max(0, start - arrival), c)
            by_front.setdefault(id(row.front), []).append(packed)
        for key, packed_rows in by_front.items():
            self._fronts.send(fronts[key], b"".join(packed_rows))
        count(self._counters, line, batch, start, run_ns)
        if self._failed_in_a_row >= FAILURES_IN_A_ROW:
            raise SystemExit(f"{self._names[model]}: the engine failed {FAILURES_IN_A_ROW} times in a row")
