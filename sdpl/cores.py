"""How many cores this process really has: its affinity, the limit of its cgroup, and hyper-threads told from cores.

A container with 2 CPUs on a host with 64 cores sees 64 in `os.cpu_count()`: 64 threads on 2 CPUs are slow.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROC, CGROUP, CPUS = Path("/proc"), Path("/sys/fs/cgroup"), Path("/sys/devices/system/cpu")


def available_cores() -> int:
    """Logical cores that this process may keep busy, at least 1."""
    return _limited(len(_affinity()))


def physical_cores() -> int:
    """As `available_cores`, with the hyper-threads of one core counted once, where the system tells them apart."""
    siblings = {_siblings(core) for core in _affinity()}
    return _limited(len(siblings))


def _affinity() -> set[int]:
    """Numbers of the logical cores that this process may run on."""
    affinity: Any = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def _siblings(core: int) -> str:
    """The logical cores that share a core with this one; only itself where the system does not tell."""
    try:
        return (CPUS / f"cpu{core}" / "topology" / "thread_siblings_list").read_text(encoding="utf-8").strip()
    except OSError:
        return str(core)


def _limited(cores: int) -> int:
    """At most so many as the cgroup's quota lets run at once; a part of a core counts as one."""
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas() -> Iterator[float]:
    """The limits of this process's cgroup and of those around it, in cores."""
    for folder in _groups():
        try:
            if (folder / "cpu.max").is_file():  # cgroup v2
                quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
                period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
            if float(quota) > 0:
                yield float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):  # no limit there ("max"), or no such file
            continue


def _groups() -> Iterator[Path]:
    """Folders of this process's cgroup and of those around it. In a container they end at its own root."""
    try:
        lines = (PROC / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUP / controllers if controllers else CGROUP
        group = root / name.lstrip("/")
        yield group
        yield from (parent for parent in group.parents if parent == root or root in parent.parents)
