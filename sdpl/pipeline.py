"""The one way from images of any kind to results: decoded in a bounded pool of threads, batched, run, in order.

While a batch runs, the next ones are decoded (Pillow releases the interpreter lock). Recognising, evaluating, measuring
and training all read their images through a `Decoder`.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from sdpl.cores import available_cores
from sdpl.errors import UserError
from sdpl.forks import begin_anew_in_children
from sdpl.preprocess import preprocess
from sdpl.preprocess.inputs import ImageInput, as_source

__all__ = ["Decoder", "Pixels", "Reading", "available_cores", "batched", "read_ahead", "run_groups", "stream"]

CLOSED = "these images cannot be read: what reads them was closed"
MOST_WAITED = 10.0  # seconds for the end of a thread that reads ahead

Source = TypeVar("Source")
Row = TypeVar("Row")
Result = TypeVar("Result")
Decoded = list[tuple[Source, np.ndarray | UserError]]  # of one group: each source with its image, or what is wrong


class Reading(Protocol):
    """How the images of one run come to what runs them. Thread-safe."""

    def load(self, image: ImageInput) -> np.ndarray:
        """One image, decoded. Raises UserError naming a bad one."""

    def collate(self, images: list[np.ndarray]) -> Any:
        """Some of those that were loaded, as a batch to run."""


class Pixels:
    """The `Reading` of whatever takes uint8 [B,S,S,3]: images are resized where they are decoded."""

    def __init__(self, image_size: int):
        self._side = image_size

    def load(self, image: ImageInput) -> np.ndarray:
        return preprocess(as_source(image), self._side)

    def collate(self, images: list[np.ndarray]) -> np.ndarray:
        return np.stack(images)


class Decoder:
    """A pool of decoding threads. Thread-safe; use as a context manager, or call `close`.

    In a forked child it has threads of its own; what was begun before the fork cannot go on there.
    """

    def __init__(self, workers: int | None = None):
        """workers: threads; None for as many as this process has cores."""
        self.workers = workers or available_cores()
        self.after_fork()
        begin_anew_in_children(self)

    def after_fork(self) -> None:
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="sdpl-decode")

    def groups(
        self, groups: Iterable[Collection[Source]], load: Callable[[Source], np.ndarray]
    ) -> Iterator[Decoded[Source]]:
        """Each group of sources with their images as `load` gives them, in order.

        A UserError of `load` takes the image's place; any other error is raised. Beyond the group that is used, at
        least one more and at most that or twice as many images as there are threads are decoded or being decoded, so
        groups may go on for ever. Closing the iterator cancels what has not begun.
        """
        pool = self._pool
        waiting: deque[list[tuple[Source, Future[np.ndarray]]]] = deque()
        pending = 0  # images in `waiting`
        try:
            for group in groups:
                self._require(pool)
                waiting.append([(source, self.submit(load, source)) for source in group])
                pending += len(group)
                while len(waiting) > 1 and pending - len(waiting[0]) >= 2 * self.workers:
                    pending -= len(waiting[0])
                    yield _collect(waiting.popleft())
            while waiting:
                self._require(pool)
                yield _collect(waiting.popleft())
        finally:
            for begun in waiting:
                for _, future in begun:
                    future.cancel()

    def submit(self, load: Callable[[Source], Result], source: Source) -> Future[Result]:
        """One source alone. Raises RuntimeError when this is closed."""
        try:
            return self._pool.submit(load, source)
        except RuntimeError:  # of the pool, which speaks of futures
            raise RuntimeError(CLOSED) from None

    def close(self) -> None:
        """Stop the threads; what has not begun is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _require(self, pool: ThreadPoolExecutor) -> None:
        """Raise RuntimeError in a forked child: threads of the parent's pool never finish there."""
        if pool is not self._pool:
            raise RuntimeError("this stream of images was begun before the process was forked: begin it in the child")

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def stream(
    decoder: Decoder,
    sources: Iterable[Source],
    load: Callable[[Source], np.ndarray],
    run: Callable[[Any], Iterable[Row]],
    batch_size: int,
    collate: Callable[[list[np.ndarray]], Any] = np.stack,
) -> Iterator[tuple[Source, Row | UserError]]:
    """Each source with its row of results, or with the UserError that says why it could not be read, in order.

    sources: of any number, also endless. load: a source to uint8 [S,S,3]. collate: images to what `run` takes, by
    default uint8 [B,S,S,3]. run: that to B rows. A batch holds the readable ones of `batch_size` sources: which images
    run together does not depend on timing.
    """
    for group in run_groups(decoder, batched(sources, batch_size), load, run, collate):
        yield from group


def run_groups(
    decoder: Decoder,
    groups: Iterable[Collection[Source]],
    load: Callable[[Source], np.ndarray],
    run: Callable[[Any], Iterable[Row]],
    collate: Callable[[list[np.ndarray]], Any] = np.stack,
    ahead: int = 0,
) -> Generator[list[tuple[Source, Row | UserError]], None, None]:
    """As `stream`, from groups that are made already: each is one batch, and comes back as one list, in order.

    ahead: batches that `run` is given before the rows of the first are looked at, where it returns before they are
    there.
    """
    begun: deque[tuple[Decoded[Source], Iterable[Row]]] = deque()
    for group in decoder.groups(groups, load):
        images = [image for _, image in group if not isinstance(image, UserError)]
        begun.append((group, run(collate(images)) if images else ()))
        if len(begun) > ahead:
            yield _joined(*begun.popleft())
    while begun:
        yield _joined(*begun.popleft())


def _joined(group: Decoded[Source], results: Iterable[Row]) -> list[tuple[Source, Row | UserError]]:
    rows = iter(results)
    return [(source, image if isinstance(image, UserError) else next(rows)) for source, image in group]


def batched(items: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """The items in lists of `size`; the last may be shorter. (itertools has it from Python 3.12 on.)"""
    batch: list[Source] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_ahead(items: Iterable[Source], most: int) -> Generator[Source, None, None]:
    """The items, made in a thread of their own up to `most` ahead of their use: reading from afar then overlaps.

    An error of `items` is raised where it would have come. Closing the iterator waits until the thread has ended, which
    it does at its next item: one that is inside a C++ library while Python ends would abort the process. One that hangs
    in a dead storage is left behind after a while.
    """
    ready: queue.Queue[tuple[Source | None, BaseException | None]] = queue.Queue(most)
    closed = threading.Event()

    def put(item: Source | None, error: BaseException | None) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                return ready.put((item, error), timeout=0.1)

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if closed.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # raised where the items are used
            put(None, error)

    thread = threading.Thread(target=make, name="sdpl-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield cast(Source, item)
    finally:
        closed.set()
        thread.join(MOST_WAITED)


def _collect(group: list[tuple[Source, Future[np.ndarray]]]) -> Decoded[Source]:
    images: Decoded[Source] = []
    for source, future in group:
        try:
            images.append((source, future.result()))
        except UserError as error:
            images.append((source, error))
        except CancelledError:
            raise RuntimeError(CLOSED) from None
    return images
