"""Which models are wanted, and the thread that makes their bundles ready, one after another.

Everything asked for is a `Job`. Taking a model out of service voids all jobs that it has, waiting, running or done:
what was begun before can never bring it back. A model that is wanted but not served is tried again after `RETRY_S`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sdpl.errors import UserError
from sdpl.server.serving import Serving

RETRY_S = 10.0
UNLOADED = "it was unloaded meanwhile"

Tell = Callable[[str], None]  # told why something was not done, or "" when it was


@dataclass(eq=False)
class Job:
    """One model to be made ready. result: what is ready, or why it is not. tells: of those who wait for it."""

    model: int
    tells: list[Tell] = field(default_factory=list)
    begun: bool = False
    void: bool = False
    result: Serving | str | None = None

    def tell(self, reason: str) -> None:
        for tell in self.tells:
            tell(reason)


class Loading:
    """The jobs of all models. Everything but the thread itself belongs to one thread, the engine's."""

    def __init__(self, make: Callable[[int], Serving], wake: Callable[[], None]):
        """make: makes a model ready; raises nothing but UserError. wake: called when a job is through. Both are called
        in the thread."""
        self._make, self._wake = make, wake
        self._jobs: list[Job] = []
        self._unwanted: set[int] = set()
        self._retry_at: dict[int, float] = {}
        self._changed = threading.Condition()  # guards the jobs

    def start(self) -> None:
        threading.Thread(target=self._run, name="sdpl-load", daemon=True).start()

    def load(self, model: int, tell: Tell | None = None) -> None:
        """Want a model, as it is on disk from now on. One that waits to be read is not read twice."""
        self._unwanted.discard(model)
        self._retry_at.pop(model, None)
        with self._changed:
            job = next((job for job in self._jobs if job.model == model and not job.begun), None)
            if job is None:
                job = Job(model)
                self._jobs.append(job)
                self._changed.notify()
            if tell is not None:
                job.tells.append(tell)

    def unload(self, model: int) -> None:
        """Want a model no more."""
        self._unwanted.add(model)
        self._retry_at.pop(model, None)
        with self._changed:
            void = [job for job in self._jobs if job.model == model and not job.void]
            for job in void:
                job.void = True
            self._jobs = [job for job in self._jobs if job.begun or not job.void]
        for job in void:
            job.tell(UNLOADED)

    def replaced(self, model: int) -> None:
        """Another bundle is at a model's path."""
        if model not in self._unwanted:
            self.load(model)

    def retry_later(self, model: int) -> None:
        """A wanted model could not be made ready, and nothing serves it."""
        self._retry_at[model] = time.monotonic() + RETRY_S

    @property
    def next_retry(self) -> float | None:
        """When `retry` has something to do, of the monotonic clock."""
        return min(self._retry_at.values(), default=None)

    def retry(self) -> None:
        now = time.monotonic()
        for model in [model for model, at in self._retry_at.items() if at <= now]:
            self.load(model)

    def finished(self) -> list[Job]:
        """The jobs that are through, in order; what void ones made is closed."""
        with self._changed:
            through = [job for job in self._jobs if job.result is not None]
            self._jobs = [job for job in self._jobs if job.result is None]
        for job in through:
            if job.void and isinstance(job.result, Serving):
                job.result.recognizer.close()
        return [job for job in through if not job.void]

    def _run(self) -> None:
        while True:
            with self._changed:
                while (job := next((job for job in self._jobs if not job.begun), None)) is None:
                    self._changed.wait()
                job.begun = True
            try:
                result: Serving | str = self._make(job.model)
            except UserError as error:
                result = str(error)
            with self._changed:
                job.result = result
            self._wake()
