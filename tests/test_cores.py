"""Cores that a process really has: affinity, cgroup limits of both versions, and hyper-threads."""

import os

import pytest

from sdpl import cores
from sdpl.pipeline import Decoder


@pytest.fixture
def host(tmp_path, monkeypatch):
    """host(affinity, groups, siblings): a machine with these files. groups: path in /sys/fs/cgroup -> text."""

    def made(affinity, cgroup="0::/", files=(), siblings=()):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity), raising=False)
        for name in ("PROC", "CGROUP", "CPUS"):
            monkeypatch.setattr(cores, name, tmp_path / name)
        texts = {"PROC/self/cgroup": cgroup}
        texts |= {f"CGROUP/{path}": text for path, text in files}
        texts |= {f"CPUS/cpu{core}/topology/thread_siblings_list": text for core, text in siblings}
        for path, text in texts.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)

    return made


def test_a_machine_without_limits(host):
    host(range(8))
    assert (cores.available_cores(), cores.physical_cores()) == (8, 8)


def test_affinity_and_hyper_threads(host):
    host([0, 1, 4, 5], siblings=[(0, "0,4"), (1, "1,5"), (4, "0,4"), (5, "1,5")])
    assert (cores.available_cores(), cores.physical_cores()) == (4, 2)


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/", [("cpu.max", "200000 100000\n")], 2),
        ("0::/", [("cpu.max", "max 100000\n")], 64),
        ("0::/", [("cpu.max", "150000 100000\n")], 2),
        ("0::/", [("cpu.max", "10000 100000\n")], 1),
        ("0::/a/b", [("a/cpu.max", "300000 100000"), ("a/b/cpu.max", "max 100000")], 3),
        ("0::/a/b", [("a/cpu.max", "300000 100000"), ("a/b/cpu.max", "100000 100000")], 1),
        ("4:cpu,cpuacct:/docker/x\n3:memory:/", [("cpu,cpuacct/cpu.cfs_quota_us", "400000"),
                                                 ("cpu,cpuacct/cpu.cfs_period_us", "100000")], 4),
        ("4:cpu:/", [("cpu/cpu.cfs_quota_us", "-1"), ("cpu/cpu.cfs_period_us", "100000")], 64),
        ("0::/", [("cpu.max", "what is this")], 64),
    ],
)  # fmt: skip
def test_limits_of_a_container(host, cgroup, files, expected):
    host(range(64), cgroup, files)
    assert cores.available_cores() == cores.physical_cores() == expected


def test_decoding_takes_as_many_threads(host):
    host(range(64), files=[("cpu.max", "300000 100000")])
    with Decoder() as decoder:
        assert decoder.workers == 3
