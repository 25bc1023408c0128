"""Ray as the engine: shards are tasks of actors that hold an opened recognizer, on as many machines as there are.

Ray schedules and restarts; a shard is finished by its file, not by Ray. So nothing that Ray loses is lost.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from sdpl.errors import UserError, listed
from sdpl.scale.job import Model
from sdpl.scale.plan import Shard
from sdpl.scale.worker import Options, Outcome, Worker

START_S = 300  # for a worker to open its bundle, machines that are still joining included


class RayEngine:
    """Workers on a Ray cluster, or on one that is started on this machine ("local")."""

    def __init__(self, options: Options, address: str, workers: int | None = None):
        """Raises UserError when the cluster cannot be reached, or its workers do not hold the same bundle, package
        version and target."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray = ray
        self.devices = 1
        self._lost: set[int] = set()  # shards whose worker was lost
        self._started = not ray.is_initialized()
        if self._started:
            _connect(ray, address)
        try:
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self.machines = len(nodes)
            resources = ray.cluster_resources()
            cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
            self.workers = workers or gpus or self.machines
            share = {"num_gpus": 1} if gpus >= self.workers else {"num_cpus": max(1, cores // self.workers)}
            threads = options.threads or (None if "num_gpus" in share else share["num_cpus"])
            actor = ray.remote(max_restarts=-1, **share)(_Remote)
            given = replace(options, threads=threads)
            self._actors = [actor.remote(given, os.getcwd()) for _ in range(self.workers)]
            self.model, self.categories, self.decoders = self._agreed()
        except BaseException:
            self.close()
            raise

    def run(self, job_id: str, shards: Iterable[Shard], tick: Callable[[int], None]) -> Iterator[Outcome]:
        """One shard at a time on each worker. A shard whose worker is lost is to be tried again, carefully."""
        ray, queue = self._ray, iter(shards)
        running: dict[Any, tuple[Any, Shard]] = {}

        def begin(actor: Any) -> None:
            shard = next(queue, None)
            if shard is not None:
                careful = shard.index in self._lost
                running[actor.score.remote(job_id, self.model, shard, careful)] = (actor, shard)

        for actor in self._actors:
            begin(actor)
        while running:
            ready, _ = ray.wait(list(running))
            for reference in ready:
                actor, shard = running.pop(reference)
                try:
                    outcome = ray.get(reference)
                except ray.exceptions.RayActorError:
                    self._lost.add(shard.index)
                    outcome = Outcome(shard.index, failure=f"{shard.locations[0]}: its worker was lost.", again=True)
                except ray.exceptions.RayTaskError as error:
                    cause = error.cause
                    if isinstance(cause, UserError):
                        raise UserError(str(cause)) from None
                    outcome = Outcome(shard.index, failure=f"{shard.locations[0]}: {cause!r}", again=True)
                if outcome.counts is not None:
                    tick(outcome.counts.images)
                begin(actor)
                yield outcome

    def close(self) -> None:
        if self._started:
            self._ray.shutdown()
        else:
            for actor in getattr(self, "_actors", ()):
                self._ray.kill(actor)

    def _agreed(self) -> tuple[Model, tuple[str, ...], int]:
        """What every worker says it opened."""
        try:
            told = self._ray.get([actor.describe.remote() for actor in self._actors], timeout=START_S)
        except self._ray.exceptions.GetTimeoutError:
            raise UserError(
                f"not all of {self.workers} workers started within {START_S} s: the cluster has too few free cores or "
                "GPUs; ask for fewer --workers."
            ) from None
        except self._ray.exceptions.RayActorError as error:
            raise UserError(f"a worker could not start ({_first_line(error)}).") from None
        failed = [text for text, *_ in told if text is not None]
        if failed:
            raise UserError(f"{len(failed)} of {len(told)} workers could not start: {listed(sorted(set(failed)), 2)}")
        _, host, model, categories, decoders = told[0]
        for _, other_host, other, *_ in told[1:]:
            difference = model.difference(other)
            if difference:
                raise UserError(f"the workers differ: {difference} (on {host} and on {other_host}).")
        return model, categories, decoders


class _Remote:
    """The actor. An error while opening is kept, to be told as one line: an actor that cannot start would be tried
    for ever."""

    def __init__(self, options: Options, folder: str):
        """folder: what relative paths mean, where it exists."""
        if os.path.isdir(folder):
            os.chdir(folder)
        self.worker: Worker | None = None
        self.failure: str | None = None
        try:
            self.worker = Worker(options, leaves_when_hung=True)
        except UserError as error:
            self.failure = str(error)

    def describe(self) -> tuple[str | None, str, Model | None, tuple[str, ...], int]:
        import socket

        host = socket.gethostname()
        if self.worker is None:
            return f"{host}: {self.failure}", host, None, (), 0
        return None, host, self.worker.model, self.worker.categories, self.worker.decoders

    def score(self, job_id: str, model: Model, shard: Shard, careful: bool = False) -> Outcome:
        """A worker that was restarted, perhaps on another machine, is looked at again before it scores."""
        if self.worker is None:
            return Outcome(shard.index, failure=self.failure, again=True)
        difference = model.difference(self.worker.model)
        if difference:
            return Outcome(shard.index, failure=f"a restarted worker differs: {difference}", again=True)
        return self.worker.score_one(job_id, shard, careful)


def _connect(ray: Any, address: str) -> None:
    quiet = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        raise UserError(f"--ray {address}: cannot connect to this cluster ({_first_line(error)}).") from None


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
