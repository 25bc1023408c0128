"""What scores shards: an opened recognizer with its decoding threads. One per process, on one machine or on many."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np

from sdpl.errors import UserError
from sdpl.pipeline import Decoder, Reading, batched, read_ahead, run_groups
from sdpl.runtime import Recognizer
from sdpl.scale.devices import Recognizers
from sdpl.scale.isolated import Isolated
from sdpl.scale.job import Model, Settings
from sdpl.scale.output import Counts, Keep, Row, ShardWriter, read_metadata
from sdpl.scale.plan import Shard, output_name
from sdpl.scale.readers import Columns, Entry, read_shard
from sdpl.scale.storage import StorageError, open_store
from sdpl.supervised import HUNG, Journal
from sdpl.text import as_utf8

AHEAD = 2  # batches that are read, beyond those that are decoded


@dataclass(frozen=True)
class Options:
    """How a worker opens its bundle; paths must hold on its machine. backend, threads, streams, precision: as of
    `Recognizer.open`; as many threads decode. devices: the GPUs' numbers; none for the first, if there is one.
    batch_size: images per call; None for the backend's largest. image_timeout_s: for decoding one image, where it can
    be held to it."""

    bundle: str
    out: str
    backend: str = "auto"
    threads: int | None = None
    streams: int | None = None
    precision: str | None = None
    batch_size: int | None = None
    settings: Settings = field(default_factory=Settings)
    devices: tuple[int, ...] = ()
    image_timeout_s: float = 120.0


@dataclass
class Times:
    """Seconds: of all, in the model (of all devices), of the decoding threads' CPU, of this process's CPU."""

    wall: float = 0.0
    model: float = 0.0
    decode: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Times") -> "Times":
        return Times(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: its counts, or why it failed and whether trying again may help."""

    shard: int
    counts: Counts | None = None
    failure: str | None = None
    again: bool = False
    times: Times = field(default_factory=Times)


@dataclass(frozen=True)
class _End:
    """Follows a shard's last entry. failure: why its reader stopped before the end."""

    shard: Shard
    failure: UserError | None = None

    def fetched(self) -> bytes:
        raise UserError("the end of a shard")


class Worker:
    """Scores shards into files. Use as a context manager, or call `close`."""

    def __init__(self, options: Options, journal: Journal | None = None, leaves_when_hung: bool = False):
        """journal: is told which shards are in work. leaves_when_hung: end the process when an image takes too long,
        for one who starts another. Raises UserError when the bundle cannot be opened, nothing of it runs here, or it
        has no embeddings and they are asked for."""
        self.options, self._journal = options, journal
        self._recognizers = Recognizers(self._opened, options.devices)
        self._recognizer = self._recognizers.first
        self._decoder = Decoder(options.threads)
        backend = self._recognizer.backend
        self.batch_size = options.batch_size or backend.batch_sizes[-1]
        self.model = Model.of(self._recognizer.bundle, self._recognizer.target, self.batch_size)
        self.decoders, self.devices = self._decoder.workers, self._recognizers.count
        self._store = open_store(options.out)
        self._keep = Keep.parse(options.settings.keep)
        self._embedding_size = self._recognizer.embedding_size if options.settings.embeddings else None
        self._columns = Columns(options.settings.image_column, options.settings.key_column)
        self._times, self._lock = Times(), threading.Lock()
        self._isolated: Isolated | None = None
        self._since: dict[int, float] = {}  # when each thread that decodes has begun
        self._closed = threading.Event()
        if leaves_when_hung:
            threading.Thread(target=self._leave_when_hung, daemon=True).start()

    @property
    def categories(self) -> tuple[str, ...]:
        return self._recognizer.categories

    def score(
        self,
        job_id: str,
        shards: Iterable[Shard],
        tick: Callable[[int], None] = lambda images: None,
        careful: bool = False,
    ) -> Iterator[Outcome]:
        """Write each shard's file, and tell what became of it, in order. tick: called with the images of each batch.
        careful: for shards that have ended a process: their images are decoded in processes of their own, and one that
        ends its process is a row with an error.

        Shards overlap: the next is read and decoded while the model runs on the end of this one. No batch holds images
        of two shards, so that a shard's scores do not depend on which others were finished before.

        Raises UserError when the output cannot be written.
        """
        groups, ahead = read_ahead(self._groups(shards), AHEAD), self._recognizers.ahead
        reading = self._recognizer.reading()  # of this call: what it decodes and does not score goes with it
        scored = run_groups(self._decoder, groups, partial(self._load, reading), self._run, reading.collate, ahead)
        writer: ShardWriter | None = None
        failure: UserError | None = None
        begin, cpu = time.perf_counter(), sum(os.times()[:2])
        self._isolated = Isolated(self.options.image_timeout_s) if careful else None
        try:
            for group in scored:
                end = group[0][0]
                if not isinstance(end, _End):
                    tick(len(group))
                    for entry, result in group:
                        if isinstance(result, StorageError):
                            failure = result
                        elif failure is None and isinstance(entry, Entry):
                            writer = writer or self._writer(entry.shard)
                            writer.add(entry, result)
                    continue
                failure, now, cpu_now = failure or end.failure, time.perf_counter(), sum(os.times()[:2])
                outcome = self._ended(end.shard, writer, failure, job_id)
                writer, failure = None, None
                yield replace(outcome, times=self._taken(now - begin, cpu_now - cpu))
                begin, cpu = now, cpu_now
        finally:
            scored.close()
            groups.close()
            if writer is not None:
                writer.abandon()
            if self._isolated is not None:
                self._isolated.close()

    def score_one(self, job_id: str, shard: Shard, careful: bool = False) -> Outcome:
        """As `score`, for one shard. A file that is there already, from a worker that was lost behind it, is kept."""
        if self._store.has(shard.name):
            content = read_metadata(self._store, shard.name)
            if content["job"] == job_id:
                return Outcome(shard.index, Counts(**content["counts"]))
        (outcome,) = self.score(job_id, [shard], careful=careful)
        return outcome

    def close(self) -> None:
        self._closed.set()
        self._decoder.close()
        self._recognizers.close()

    def _groups(self, shards: Iterable[Shard]) -> Iterator[list[Entry | _End]]:
        for shard in shards:
            failure = None
            if self._journal is not None:
                self._journal.begin(shard.index)
            try:
                yield from batched(read_shard(shard, self._columns), self.batch_size)  # type: ignore[misc]
            except UserError as error:
                failure = error
            yield [_End(shard, failure)]

    def _load(self, reading: Reading, entry: Entry | _End) -> np.ndarray:
        begin, thread = time.thread_time(), threading.get_ident()
        try:
            image = entry.fetched()
            if self._isolated is not None and isinstance(entry, Entry):
                return self._isolated.load(image, entry.source, self._recognizer.image_size)
            self._since[thread] = time.monotonic()
            return reading.load(image)
        finally:
            self._since.pop(thread, None)
            with self._lock:
                self._times.decode += time.thread_time() - begin

    def _leave_when_hung(self) -> None:
        """Threads in native code cannot be stopped, but their process can."""
        limit = self.options.image_timeout_s
        while not self._closed.wait(min(limit / 4, 5)):
            before = time.monotonic() - limit
            if any(since < before for since in tuple(self._since.values())):
                os._exit(HUNG)

    def _run(self, images: Any) -> Iterable[Row]:
        def call(recognizer: Recognizer) -> Iterable[Row]:
            if self._embedding_size is None:
                return zip(recognizer.scores(images), repeat(None))
            return zip(*recognizer.embeddings(images), strict=True)

        return self._recognizers.run(call)

    def _opened(self, device: int | None, target: str | None) -> Recognizer:
        own = self.options
        precision = own.precision if target is None else None
        return Recognizer.open(own.bundle, target or own.backend, own.threads, own.streams, precision, device=device)

    def _taken(self, wall: float, cpu: float) -> Times:
        """The times since the last shard; decoding counts when it happens, so it may be of the next shard."""
        with self._lock:
            times, self._times = self._times, Times()
        times.model = self._recognizers.taken()
        times.wall, times.cpu = wall, cpu
        return times

    def _writer(self, index: int) -> ShardWriter:
        manifest, settings = self._recognizer.bundle.manifest, self.options.settings
        about = (settings.dtype, manifest.categories, manifest.thresholds, self._embedding_size)
        return ShardWriter(self._store, output_name(index), self._keep, *about)

    def _ended(self, shard: Shard, writer: ShardWriter | None, failure: UserError | None, job_id: str) -> Outcome:
        """Put a shard's file in place, or delete what was written of it."""
        if failure is None:
            outcome = Outcome(shard.index, self._finish(writer or self._writer(shard.index), shard, job_id))
        else:
            if writer is not None:
                writer.abandon()
            outcome = Outcome(shard.index, failure=str(failure), again=isinstance(failure, StorageError))
        if self._journal is not None:
            self._journal.end(shard.index)
        return outcome

    def _finish(self, writer: ShardWriter, shard: Shard, job_id: str) -> Counts:
        manifest = self._recognizer.bundle.manifest
        return writer.finish(
            {
                "job": job_id,
                "shard": shard.index,
                "kind": shard.kind,
                "input": as_utf8(shard.locations[0]),
                **vars(self.model),
                "checkpoint_sha256": manifest.checkpoint_sha256,
                "keep": self.options.settings.keep,
                "categories": manifest.categories,
                "thresholds": manifest.thresholds,
                "versions": self._recognizer.backend.describe(),
            }
        )
