"""The recognizers of one worker: one, or one for each of several GPUs, which take the batches as they become free."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

from sdpl.errors import UserError, listed
from sdpl.kernels.gpu import find_gpu, find_gpus, gpu_obstacle
from sdpl.runtime import Recognizer
from sdpl.targets import BACKENDS

Call = Callable[[Recognizer], Iterable[Any]]  # one batch with a recognizer: its rows


def parse_devices(text: str | None) -> tuple[int, ...]:
    """The GPUs' numbers from "0", "0,1", "cuda:0,cuda:1" or "all"; none for None. Raises UserError."""
    if text is None:
        return ()
    if text == "all":
        found = tuple(range(len(find_gpus())))
        if not found:
            raise UserError(f"--device all: {gpu_obstacle()}.")
        return found
    parts = [part.strip().removeprefix("cuda:") for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--device {text!r}: expected the numbers of GPUs, such as 0 or 0,1, or all.")
    numbers = tuple(int(part) for part in parts)
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--device {text}: names a GPU twice.")
    return numbers


class Recognizers:
    """Opened recognizers of one target. `first` speaks for all of them."""

    def __init__(self, open_one: Callable[[int | None, str | None], Recognizer], devices: tuple[int, ...]):
        """open_one: a recognizer on a device, of a target, or of whatever is asked for. Raises UserError for GPUs whose
        scores would not be equal bit by bit: a shard's content must not depend on which was free."""
        names = {number: gpu.name for number in devices if (gpu := find_gpu(number)) is not None}
        if len(set(names.values())) > 1:
            kinds = listed([f"{number}: {name}" for number, name in names.items()])
            raise UserError(f"--device: these GPUs differ ({kinds}), and so would rounding; name those of one kind.")
        with ExitStack() as opened:
            self.first = opened.enter_context(open_one(devices[0] if devices else None, None))
            if len(devices) > 1 and not BACKENDS[self._backend()].needs_gpu:
                raise UserError(
                    f"--device: {self.first.target} runs on the CPU: leave the option out, or name a target."
                )
            rest = [opened.enter_context(open_one(device, self.first.target)) for device in devices[1:]]
            self._opened = opened.pop_all()
        self._free: SimpleQueue[Recognizer] = SimpleQueue()
        for recognizer in (self.first, *rest):
            self._free.put(recognizer)
        self.count = 1 + len(rest)
        self._pool = ThreadPoolExecutor(self.count, "sdpl-device") if rest else None
        self._seconds, self._lock = 0.0, threading.Lock()

    @property
    def ahead(self) -> int:
        """Batches to hand over before the first one's rows are taken, so that no device waits."""
        return self.count if self._pool else 0

    def run(self, call: Call) -> Iterable[Any]:
        """The rows of a batch; with several devices they come when it is done, and other batches run meanwhile."""
        return self._call(call) if self._pool is None else _rows(self._pool.submit(self._call, call))

    def taken(self) -> float:
        """Seconds that recognizers ran, all together, since this was asked before."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds

    def close(self) -> None:
        """Wait for what is on its way, then free everything."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._opened.close()

    def _call(self, call: Call) -> Iterable[Any]:
        recognizer = self._free.get()
        begin = time.perf_counter()
        try:
            return call(recognizer)
        finally:
            with self._lock:
                self._seconds += time.perf_counter() - begin
            self._free.put(recognizer)

    def _backend(self) -> str:
        return self.first.bundle.manifest.targets[self.first.target].backend


def _rows(done: Future[Iterable[Any]]) -> Iterator[Any]:
    yield from done.result()
