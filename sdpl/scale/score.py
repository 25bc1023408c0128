"""A whole job: shards through an engine, each exactly once, with what is told while it runs and at its end."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sdpl.scale.job import JOB, Job, Model, only_job, open_job
from sdpl.scale.output import Counts, Keep
from sdpl.scale.plan import Shard, make_plan
from sdpl.scale.storage import open_store
from sdpl.scale.worker import Options, Outcome, Times, Worker
from sdpl.supervised import Journal
from sdpl.text import as_utf8

Tick = Callable[[int], None]


class Engine(Protocol):
    """Where shards are scored. A context manager."""

    workers: int
    machines: int
    decoders: int  # threads of each worker that decode
    devices: int  # on which each worker runs the model
    model: Model
    categories: tuple[str, ...]

    def run(self, job_id: str, shards: Iterable[Shard], tick: Tick) -> Iterator[Outcome]:
        """What became of each shard, in any order. Raises UserError when the output cannot be written."""

    def close(self) -> None:
        """Free everything."""


class OneProcess:
    """This process: shards one after the other, reading, decoding and the model at the same time."""

    workers = machines = 1

    def __init__(self, options: Options, journal: Journal | None = None):
        """journal: of the process that started this one, and would start another."""
        self._worker, self._journal = Worker(options, journal, leaves_when_hung=journal is not None), journal
        self.model, self.decoders, self.devices = self._worker.model, self._worker.decoders, self._worker.devices
        self.categories = self._worker.categories

    def run(self, job_id: str, shards: Iterable[Shard], tick: Tick) -> Iterator[Outcome]:
        """Shards that were in work when a process died come last, one at a time and carefully."""
        suspects: list[Shard] = []
        yield from self._worker.score(job_id, self._trusted(shards, suspects), tick)
        for shard in suspects:
            if self._journal is None or self._journal.deaths[shard.index] < self._journal.tries:
                yield from self._worker.score(job_id, [shard], tick, careful=True)
            else:
                why = f"ended the process {self._journal.deaths[shard.index]} times, and not by decoding one image"
                yield Outcome(shard.index, failure=f"{shard.locations[0]}: {why}.")

    def _trusted(self, shards: Iterable[Shard], suspects: list[Shard]) -> Iterator[Shard]:
        for shard in shards:
            if self._journal is not None and self._journal.deaths[shard.index]:
                suspects.append(shard)
            else:
                yield shard

    def close(self) -> None:
        self._worker.close()


@dataclass
class Status:
    """How far a job is. images, bad and their rate are of this run; shards are of the whole job."""

    shards: int
    shards_before: int  #: finished by earlier runs
    shards_done: int
    bytes: int
    bytes_before: int
    bytes_done: int
    images: int = 0
    bad: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    times: Times = field(default_factory=Times)
    finished_images: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Since this run began."""
        return max(time.monotonic() - self.began, 1e-9)

    def eta_s(self) -> float | None:
        """Seconds left, by the bytes of finished shards, or by their number where sizes are unknown."""
        done, total = (self.bytes_done - self.bytes_before, self.bytes - self.bytes_before)
        if not total:
            done, total = self.shards_done - self.shards_before, self.shards - self.shards_before
        return self.elapsed_s * (total - done) / done if done > 0 else None

    def rates(self, engine: Engine) -> dict[str, float | None]:
        """Images per second: of this run, and what decoding and the model would do alone, over all workers."""
        n, decode, model = self.finished_images, self.times.decode, self.times.model
        return {
            "images_per_s": self.images / self.elapsed_s,
            "decoding_per_s": n / decode * engine.workers * engine.decoders if decode else None,
            "model_per_s": n / model * engine.workers * engine.devices if model else None,
        }

    def to_dict(self, engine: Engine) -> dict[str, Any]:
        """For a machine to read."""
        eta = self.eta_s()
        numbers = {**self.rates(engine), "eta_s": eta, "elapsed_s": self.elapsed_s}
        shown = {key: None if value is None else round(value, 3) for key, value in numbers.items()}
        counted = {"images": self.images, "bad": self.bad, "shards_done": self.shards_done, "shards": self.shards}
        return {**counted, "shards_failed": len(self.failures), **shown}


@dataclass(frozen=True)
class Summary:
    """The end of a job. counts: of the whole job, with earlier runs; the rest is of this run."""

    shards: int
    shards_before: int
    repeated_inputs: int
    failures: dict[str, str]
    counts: Counts
    categories: tuple[str, ...]
    images: int
    elapsed_s: float
    images_per_s: float
    images_per_cpu_s: float | None
    decoding_busy: float
    model_busy: float
    workers: int
    machines: int
    target: str
    billion_costs: float | None

    @property
    def slowest(self) -> str:
        """The stage that is busy the larger part of the time."""
        return "model" if self.model_busy >= self.decoding_busy else "decoding"

    def above(self) -> dict[str, int]:
        """For each category, the images whose score reaches its threshold; most frequent first."""
        pairs = zip(self.categories, self.counts.above or [0] * len(self.categories), strict=True)
        return dict(sorted(pairs, key=lambda pair: -pair[1]))

    def to_dict(self) -> dict[str, Any]:
        """For a machine to read."""
        values = asdict(self)
        counts = values.pop("counts")
        del values["categories"]
        return {**values, "all_images": counts["images"], "all_bad": counts["bad"], "above": self.above()}


Watch = Callable[[Status, Engine], None]


def score(
    options: Options,
    inputs: Iterable[str],
    *,
    recursive: bool = False,
    engine: Callable[[Options], Engine] = OneProcess,
    tries: int = 3,
    price_per_hour: float | None = None,
    watch: Watch = lambda status, engine: None,
) -> Summary:
    """Score the inputs into Parquet files in `options.out`, each shard exactly once, going on where a run stopped.

    inputs: images, folders, globs, `@list.txt`, `-`, tar and Parquet files, and URLs of fsspec's file systems.
    tries: for a shard whose storage or worker fails. price_per_hour: of one machine, for the estimate of a billion.
    Raises UserError before anything is scored when inputs, bundle and folder do not fit together, and later when the
    output cannot be written. Shards that failed are in the summary; the same call tries them again.
    """
    Keep.parse(options.settings.keep)
    store = open_store(options.out)
    with only_job(store):
        is_new = not store.has(JOB)
        plan, repeated = make_plan(inputs, recursive, options.settings.shard_size, store, is_new)
        opened = engine(options)
        try:
            job = open_job(store, plan, opened.model, options.settings)
            store.clear_unfinished()
            status = _run(opened, job, tries, watch)
            summary = _summary(opened, job, status, repeated, price_per_hour)
        finally:
            opened.close()
    return summary


def _run(engine: Engine, job: Job, tries: int, watch: Watch) -> Status:
    """Every shard that is to do, those that fail for a while again behind the others."""
    sizes = job.plan.sizes()
    before = int(sum(sizes[index] for index in job.done))
    status = Status(len(job.plan), len(job.done), len(job.done), int(sizes.sum()), before, before)
    watch(status, engine)

    def tick(images: int) -> None:
        status.images += images
        watch(status, engine)

    todo = job.todo()
    for attempt in range(tries):
        again = []
        for outcome in engine.run(job.id, map(job.plan.shard, todo), tick):
            status.times += outcome.times
            if outcome.counts is not None:
                job.finish(outcome.shard, outcome.counts)
                status.failures.pop(outcome.shard, None)
                status.shards_done += 1
                status.bytes_done += int(sizes[outcome.shard])
                status.bad += outcome.counts.bad
                status.finished_images += outcome.counts.images
            else:
                status.failures[outcome.shard] = outcome.failure or "unknown"
                again += [outcome.shard] if outcome.again else []
            watch(status, engine)
        todo = again
        if not todo:
            break
        if attempt + 1 < tries:
            time.sleep(min(2**attempt, 10))
    return status


def _summary(engine: Engine, job: Job, status: Status, repeated: int, price_per_hour: float | None) -> Summary:
    elapsed, times = status.elapsed_s, status.times
    rate = status.finished_images / elapsed
    costs = None
    if price_per_hour is not None and rate > 0:
        costs = price_per_hour * engine.machines * 1e9 / rate / 3600
    return Summary(
        shards=len(job.plan),
        shards_before=status.shards_before,
        repeated_inputs=repeated,
        failures={as_utf8(job.plan.shard(index).locations[0]): why for index, why in sorted(status.failures.items())},
        counts=job.counts,
        categories=engine.categories,
        images=status.finished_images,
        elapsed_s=elapsed,
        images_per_s=rate,
        images_per_cpu_s=status.finished_images / times.cpu if times.cpu else None,
        decoding_busy=times.decode / (elapsed * engine.workers * engine.decoders),
        model_busy=times.model / (elapsed * engine.workers * engine.devices),
        workers=engine.workers,
        machines=engine.machines,
        target=engine.model.target,
        billion_costs=costs,
    )
