"""The supervisor: starts the processes, restarts those that die, watches the bundles, and ends everything in order."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpl.atomic import Temporary, remove_leftovers
from sdpl.errors import Stopped, UserError
from sdpl.server.channel import Channel, ClosedError
from sdpl.server.counters import Counters
from sdpl.server.settings import Settings
from sdpl.server.watch import Watch
from sdpl.server.watchdog import LOOK_S, Watchdog
from sdpl.signals import STOPS

BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
ALLOCATOR = {  # of glibc, in front ends: buffers of one image are kept for the next, not given back and zeroed anew
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "67108864",
}
STEADY_S = 30.0  # after so long a restart counts as the first again
FRONT_ENDS_STOP_S = 5.0  # beside their drain time


@dataclass(eq=False)
class Child:
    """One process and how it is doing."""

    kind: str  # "engine" or "frontend"
    number: int
    row: int  # in the counters
    listener: socket.socket
    starting: asyncio.Task[None] | None = None
    process: asyncio.subprocess.Process | None = None
    control: Channel | None = None
    ready: bool = False
    models: dict[int, str] = field(default_factory=dict)  # of an engine: "ready", "failed" or "unloaded"
    unloaded: set[int] = field(default_factory=set)  # of an engine, also over restarts

    @property
    def name(self) -> str:
        return f"{self.kind} {self.number}"


class Supervisor:
    """Runs a server with these settings. Raises UserError when it cannot begin."""

    def __init__(self, settings: Settings, say: Callable[[str], None]):
        """say: told one line at a time what happens."""
        self._tell = say
        self._reserved: list[socket.socket] = []
        grpc_port = settings.grpc_port
        with contextlib.ExitStack() as opened:  # all are closed again when one cannot be had
            http = [opened.enter_context(listen(settings.host, settings.http_port))]
            port = http[0].getsockname()[1]
            for _ in range(settings.workers - 1):
                http.append(opened.enter_context(listen(settings.host, port, again=True)))
            if grpc_port is not None:  # gRPC's own sockets join this one
                self._reserved.append(opened.enter_context(listen(settings.host, grpc_port, listening=False)))
                grpc_port = self._reserved[0].getsockname()[1]
            opened.pop_all()
        self.settings = settings = Settings(**{**vars(settings), "http_port": port, "grpc_port": grpc_port})
        remove_leftovers(Path(tempfile.gettempdir()))  # of supervisors that were killed
        self._sockets = Temporary(Path(tempfile.gettempdir(), "sdpl-serve"), is_folder=True)  # nobody else may enter
        self._paths = [str(self._sockets.path / f"engine{i}") for i in range(len(settings.devices))]
        self._children = [Child("engine", i, i, _unix(path)) for i, path in enumerate(self._paths)]
        first = len(self._children)
        self._children += [Child("frontend", i, first + i, sock) for i, sock in enumerate(http)]
        self._memory = Counters.memory(len(self._children), len(settings.models))
        self._bundles = Watch(list(settings.models.values()))
        self._stopping = False
        self._fatal: asyncio.Future[str]
        self._all_ready: asyncio.Event

    def run(self, ready: Callable[[Settings], None] = lambda settings: None) -> None:
        """Serve until a signal says to stop; then finish what was accepted. ready: called once it serves.

        Raises Stopped when it was stopped before that, UserError when it cannot be served.
        """
        try:
            served = asyncio.run(self._run(ready))
        finally:
            self._sockets.close()
        if not served:
            raise Stopped

    async def _run(self, ready: Callable[[Settings], None]) -> bool:
        """Whether it came to serving."""
        loop = asyncio.get_running_loop()
        self._fatal, self._all_ready = loop.create_future(), asyncio.Event()
        stop = asyncio.Event()
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background job is not to be stopped by Ctrl-C
                loop.add_signal_handler(number, stop.set)
        keepers = [loop.create_task(self._keep(child)) for child in self._children]
        watchers = [loop.create_task(self._watch()), loop.create_task(self._guard())]
        waits: list[asyncio.Future[Any]] = [loop.create_task(self._all_ready.wait()), loop.create_task(stop.wait())]
        try:
            await asyncio.wait({*waits, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            if self._fatal.done() and not stop.is_set():
                raise UserError(self._fatal.result())
            if self._all_ready.is_set():
                ready(self.settings)
                await waits[1]
            return self._all_ready.is_set()
        finally:
            self._stopping = True
            for task in (*waits, *watchers):
                task.cancel()
            await self._end(keepers)

    # Processes

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads any more: no reason to look after less
            self._tell(line)

    async def _keep(self, child: Child) -> None:
        """Start a process, and start it again whenever it ends."""
        attempt = 0
        while not self._stopping:
            started = time.monotonic()
            child.starting = asyncio.create_task(self._start(child))
            await child.starting
            assert child.process is not None
            status = await child.process.wait()
            self._ended(child)
            if self._stopping:
                return
            if child.kind == "frontend" or self._all_ready.is_set():
                self._say(f"{child.name} ended with status {status}; it is started again")
                self._counters(child.row).add_server("restarts")
            elif not self._fatal.done():
                self._fatal.set_result(f"{child.name} ended with status {status} before it was ready.")
            attempt = 0 if time.monotonic() - started > STEADY_S else attempt + 1
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S)) - 1 if attempt else 0])

    async def _start(self, child: Child) -> None:
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a child has them blocked until it ignores them
        try:
            child.process = await self._spawn(child, theirs)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        theirs.close()
        child.control = Channel(ours)
        setup = {
            "settings": self.settings.to_json(),
            "row": child.row,
            "processes": len(self._children),
            "engines": self._paths,
            "unloaded": sorted(child.unloaded),
        }
        child.control.control(setup, (os.dup(child.listener.fileno()), os.dup(self._memory)))
        asyncio.get_running_loop().add_reader(ours, self._hear, child)

    async def _spawn(self, child: Child, control: socket.socket) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "sdpl.server.process",
            child.kind,
            str(control.fileno()),
            pass_fds=[control.fileno()],
            env={**os.environ, **self._variables(child)},
            start_new_session=True,  # a Ctrl-C in the terminal is the supervisor's alone
        )

    def _variables(self, child: Child) -> dict[str, str]:
        """What a process finds in its environment."""
        if child.kind == "engine":
            return _device(self.settings.devices[child.number])
        return {**ALLOCATOR, **_device("cpu")}

    def _hear(self, child: Child) -> None:
        assert child.control is not None
        try:
            for message in child.control.receive():
                self._told(child, message.content)
        except ClosedError:
            asyncio.get_running_loop().remove_reader(child.control.sock)

    def _told(self, child: Child, content: dict[str, Any]) -> None:
        if child.kind == "engine":
            model, state = content["model"], content["state"]
            first = model not in child.models
            child.models[model] = state
            if content["reason"] and state != "unloaded":
                self._bundles.refused(model, child.number)
            else:
                self._bundles.settled(model, child.number)
            if state == "unloaded":
                child.unloaded.add(model)
            else:
                child.unloaded.discard(model)
            if first and state == "failed" and not self._all_ready.is_set():
                if not self._fatal.done():
                    self._fatal.set_result(content["reason"])
            elif content["reason"]:
                self._say(f"{list(self.settings.models)[model]}: {content['reason']}")
            settled = [state for state in child.models.values() if state != "failed"]
            child.ready = len(settled) == len(self.settings.models)
        else:
            child.ready = content["ready"]
        if all(each.ready for each in self._children):
            self._all_ready.set()

    async def _guard(self) -> None:
        """Kill processes that hang; they are started again like others that die."""
        watchdog = Watchdog(self._counters(0), self.settings.hung_after_s)
        while self.settings.hung_after_s:
            await asyncio.sleep(LOOK_S)
            rows = watchdog.hung([child.row for child in self._children])
            for child in self._children:
                if child.row in rows and child.process is not None and child.process.returncode is None:
                    child.process.kill()
                    self._say(f"{child.name} hangs: no progress for {self.settings.hung_after_s:g} s; it is ended")

    def _counters(self, row: int) -> Counters:
        """The counters, as one who writes in this process's row: it has ended."""
        return Counters(self._memory, len(self._children), list(self.settings.models), row)

    def _ended(self, child: Child) -> None:
        self._counters(child.row).clear_progress()
        child.ready, child.models = False, {}
        if child.control is not None:
            asyncio.get_running_loop().remove_reader(child.control.sock)
            child.control.close()
            child.control = None

    async def _end(self, keepers: "list[asyncio.Task[None]]") -> None:
        """Front ends finish what they have accepted; then the engines end."""
        await asyncio.gather(*(child.starting for child in self._children if child.starting is not None))
        for sock in self._reserved:
            sock.close()
        fronts = [child for child in self._children if child.kind == "frontend"]
        for child in fronts:
            child.listener.close()
            if child.control is not None:
                with contextlib.suppress(ClosedError):
                    child.control.control({"drain": True})
        await self._gone(fronts, self.settings.drain_s + FRONT_ENDS_STOP_S)
        for child in self._children:
            if child.control is not None:
                asyncio.get_running_loop().remove_reader(child.control.sock)
                child.control.close()
                child.control = None
        await self._gone(self._children, FRONT_ENDS_STOP_S)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)

    async def _gone(self, children: list[Child], seconds: float) -> None:
        """Wait for processes to end; those that do not are killed."""
        processes = [child.process for child in children if child.process is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for process in processes:
                    await process.wait()
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()

    # Bundles on disk

    async def _watch(self) -> None:
        """Have the engines load a bundle again when there is another on disk."""
        while self.settings.watch_s:
            await asyncio.sleep(self.settings.watch_s)
            for model, is_to_load, line in await asyncio.to_thread(lambda: list(self._bundles.look())):
                self._say(line)
                for child in self._children if is_to_load else ():
                    if child.kind == "engine" and child.control is not None:
                        with contextlib.suppress(ClosedError):
                            child.control.control({"replaced": model})


def listen(host: str, port: int, again: bool = False, listening: bool = True) -> socket.socket:
    """A TCP socket whose port several sockets may share. again: it is one that we share already.

    Raises UserError when the port or the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if not again:
            with socket.socket(family, socket.SOCK_STREAM) as probe:  # sharing would hide that another has the port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if listening:
            sock.listen(1024)
    except OSError as error:
        fix = "choose another with --http-port or --grpc-port" if error.errno == errno.EADDRINUSE else "check --host"
        raise UserError(f"{host}:{port} cannot be served on ({error.strerror or error}): {fix}.") from None
    return sock


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(256)
    return sock


def _device(device: str) -> dict[str, str]:
    """What an engine's environment says about GPUs; front ends use none."""
    if device == "auto":
        return {}
    visible = "" if device == "cpu" else device
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None and device != "cpu":  # a scheduler's: the number counts those, as in every other command
        visible = dict(enumerate(each.strip() for each in given.split(","))).get(int(device), "")
    return {"CUDA_VISIBLE_DEVICES": visible}
