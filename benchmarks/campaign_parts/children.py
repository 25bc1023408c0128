"""Work in forked children that can be killed: what the parent has imported and warmed up, they need not import."""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from .running import Totals

HANG_S = 300  # a child that should end by itself is lost after so long


def killed(work: Callable[[], object], seconds: float) -> bool:
    """Whether the work was still going on when it was killed, after so many seconds."""
    child = _started(work)
    child.join(seconds)
    child.kill()
    child.join()
    return child.exitcode != 0


def whole(work: Callable[[], object]) -> bool:
    """Whether the work ended well, left alone."""
    child = _started(work)
    child.join(HANG_S)
    child.kill()
    child.join()
    return child.exitcode == 0


def timed(work: Callable[[], object]) -> tuple[float, bool]:
    """Seconds of the work in a child, and whether it ended well."""
    began = time.monotonic()
    ended = whole(work)
    return time.monotonic() - began, ended


def kill_until_done(
    totals: Totals,
    part: str,
    work: Callable[[], object],
    draw: Callable[[], float],
    until: float,
    look: Callable[[], str | None] = lambda: None,
) -> None:
    """Kill the work after `draw()` seconds, again and again, until it ends by itself; a finding if it cannot. `look`
    says what is wrong after a kill."""
    while time.monotonic() < until and killed(work, draw()):
        totals.cases += 1
        if problem := look():
            found(totals, part, problem)
    if not whole(work):
        found(totals, part, "a stopped run could not go on")


def found(totals: Totals, part: str, what: str) -> None:
    totals.findings.append({"part": part, "case": totals.cases, "what": what})


def anywhere(random: np.random.Generator, seconds: float, late: float = 0.0) -> float:
    """A moment of a run of so many seconds; with probability `late` in its last fifth, where files are put in place."""
    start = 0.8 if random.random() < late else 0.0
    return float(random.uniform(start * seconds, 1.1 * seconds))


def _started(work: Callable[[], object]) -> multiprocessing.context.ForkProcess:
    torch.set_num_threads(1)
    child = multiprocessing.get_context("fork").Process(target=_silent, args=(work,))
    child.start()
    return child


def _silent(work: Callable[[], object]) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work()
