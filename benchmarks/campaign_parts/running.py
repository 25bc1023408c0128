"""Many cases in child processes: a crash, a hang or too much memory of one is found and named, and the rest goes on."""

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sdpl.errors import UserError
from sdpl.text import printable

CHUNK = 2000  # cases of one child
MEMORY = 16 << 30  # address space of a child, most of it libraries; more ends in MemoryError, which is a finding
SECONDS = 30  # of one case


@dataclass
class Totals:
    """What came of the cases of a part."""

    cases: int = 0
    unmade: int = 0
    fine: int = 0
    refused: int = 0
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest_case: int = 0
    longest_line: int = 0
    peak_mb: int = 0  # beyond what the process held before
    cpu_s: float = 0.0  # with all child processes
    most: int = 1 << 62  # cases after which a part ends


def going_on(totals: Totals, until: float) -> bool:
    return time.monotonic() < until and totals.cases < totals.most


def run_cases(
    name: str,
    number: int,
    seed: int,
    totals: Totals,
    until: float,
    make: Callable[[], Any],
    one: Callable[[Any, np.random.Generator], Callable[[], Any]],
) -> None:
    """Run cases from `totals.cases` on until the clock reads `until`, or there are `totals.most`.

    make: what all cases share, made once in each child. one(shared, random): a case; it returns a callable that raises
    UserError, or returns. Case i draws from a generator of (seed, number of the part, i).
    """
    context = multiprocessing.get_context("fork")
    while going_on(totals, until):
        end = min(totals.cases + CHUNK, totals.most)
        at, queue = context.Value("q", totals.cases), context.SimpleQueue()
        child = context.Process(target=_child, args=(number, seed, (totals.cases, end), until, make, one, at, queue))
        child.start()
        seen, since = -1, time.monotonic()
        while child.is_alive():
            child.join(0.2)
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            elif time.monotonic() - since > SECONDS:
                child.kill()
        result = None if queue.empty() else queue.get()
        if result is None:  # it died in the middle
            totals.findings.append({"part": name, "case": at.value, "what": f"exit {child.exitcode} of the process"})
            totals.cases = at.value + 1
            continue
        for key in ("cases", "unmade", "fine", "refused"):
            setattr(totals, key, getattr(totals, key) + result[key])
        if result["slowest_s"] > totals.slowest_s:
            totals.slowest_s, totals.slowest_case = result["slowest_s"], result["slowest_case"]
        for key in ("longest_line", "peak_mb"):
            setattr(totals, key, max(getattr(totals, key), result[key]))
        known = {finding["what"] for finding in totals.findings}
        totals.findings += [{"part": name, **f} for f in result["findings"] if f["what"] not in known]


def _child(
    number: int, seed: int, cases: tuple[int, int], until: float, make: Any, one: Any, at: Any, queue: Any
) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes about every damaged file
    shared = make()
    before = _memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    result: dict[str, Any] = dict.fromkeys(("cases", "unmade", "fine", "refused", "longest_line"), 0) | {
        "slowest_s": 0.0
    }
    found: dict[str, dict[str, Any]] = {}
    for i in range(*cases):
        if time.monotonic() >= until:
            break
        at.value = i
        try:
            attack = one(shared, np.random.default_rng((seed, number, i)))
        except Exception:  # some damage cannot even be written down
            result["unmade"] += 1
            result["cases"] += 1
            continue
        began = time.perf_counter()
        try:
            attack()
            result["fine"] += 1
        except UserError as error:
            result["refused"] += 1
            result["longest_line"] = max(result["longest_line"], len(str(error)))
            if printable(str(error)) != str(error):
                found.setdefault(
                    "a line with control characters", {"case": i, "what": "a line with control characters"}
                )
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {'/'.join(Path(place.filename).parts[-2:])}:{place.lineno}"
            found.setdefault(what, {"case": i, "what": what, "message": str(error)[:200]})
        result["cases"] += 1
        if (took := time.perf_counter() - began) > result["slowest_s"]:
            result["slowest_s"], result["slowest_case"] = took, i
    result["peak_mb"] = _memory("VmHWM") - before
    result["findings"] = list(found.values())
    queue.put(result)


def _memory(key: str) -> int:
    """Of this process, in MB. (getrusage also counts what its parent held.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) // 1024
