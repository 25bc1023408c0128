"""How long work tells what it is doing: one callback type for the whole library.

Every function that takes long takes `report: Report`. The commands draw bars from it (`sdpl.cli.bars`); in a notebook
`report=print` does.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One message. With a `total`, `done` of a step's units are done; without, `step` is a line worth keeping."""

    step: str
    done: int = 0
    total: int | None = None
    note: str = ""  #: what else is worth knowing beside a count: rates, time left

    def __str__(self) -> str:
        if self.total is None:
            return self.step
        return f"{self.step}: {self.done}/{self.total}" + (f"; {self.note}" if self.note else "")


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A report that tells nobody."""


class Steps:
    """Counts one step's units for a report."""

    def __init__(self, report: Report, step: str, total: int, done: int = 0):
        self.report, self.step, self.total, self.done = report, step, total, done
        self.advance(0)

    def advance(self, units: int = 1, note: str = "") -> None:
        self.done += units
        self.report(Progress(self.step, self.done, self.total, note))
