"""Killed anywhere, out of disk, started twice: the same command ends with every key once, as in an unbroken run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

START = "import sys; from sdpl.cli import main; main(sys.argv[1:])"


def command(*words):
    return [sys.executable, "-c", START, "score", *map(str, words)]


@pytest.fixture(scope="module")
def many(tmp_path_factory, photos, write_tar):
    """12 shards of 24 pictures: long enough to be killed in the middle."""
    folder = tmp_path_factory.mktemp("many")
    data = [photo.read_bytes() for photo in photos]
    return [
        write_tar(folder / f"{i:03d}.tar", [(f"{i:03d}-{k:02d}.jpg", content) for k, content in enumerate(data)])
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, bundle, many, rows):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    subprocess.run(command(bundle, *many, "--out", out), check=True, capture_output=True)
    return rows(out)


@pytest.mark.slow
def test_killed_at_random_points_it_goes_on_exactly(bundle, many, unbroken, rows, tmp_path):
    """Each run is killed after a random time behind its first finished shard; the last one may end."""
    out, draw, killed, kept = tmp_path / "out", random.Random(0), 0, {}
    for _ in range(40):
        process = subprocess.Popen(command(bundle, *many, "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before = len(list(out.glob("shard-*.parquet")))
        while process.poll() is None and len(list(out.glob("shard-*.parquet"))) == before:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finished = {path.name: path.read_bytes() for path in out.glob("shard-*.parquet")}
        assert kept.items() <= finished.items()  # what was finished is kept, to the byte
        kept = finished
        for path in out.glob("shard-*.parquet"):
            assert pq.read_metadata(path).num_rows == 24  # a file that has its name is whole
        killed += process.returncode == -signal.SIGKILL
        if len(finished) == len(many):
            break
    assert killed >= 3
    last = subprocess.run(command(bundle, *many, "--out", out), capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    assert rows(out) == unbroken
    assert not [path for path in out.iterdir() if path.name.startswith(".shard-")]  # nothing half-written is left


@pytest.mark.slow
def test_a_full_disk_stops_it_cleanly(bundle, many, unbroken, rows, tmp_path):
    """The system refuses to let a file grow, as a full disk does."""
    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))

    out = tmp_path / "out"
    words = command(bundle, *many, "--out", out)
    result = subprocess.run(words, capture_output=True, text=True, preexec_fn=small_files)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"error: cannot write {out}" in result.stderr
    assert not list(out.glob("*shard-*"))
    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert rows(out) == unbroken


@pytest.mark.slow
def test_two_jobs_into_one_folder(bundle, many, unbroken, rows, tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(command(bundle, *many, "--out", out), stdout=subprocess.PIPE)
    while not list(out.glob("shard-*.parquet")):
        time.sleep(0.002)
    (child,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGSTOP)  # it stays in the middle of its work
    second = subprocess.run(command(bundle, *many, "--out", out), capture_output=True, text=True)
    os.kill(int(child), signal.SIGCONT)
    assert second.returncode == 2
    assert "another sdpl-score is writing into this folder" in second.stderr
    first.communicate()
    assert first.returncode == 0
    assert rows(out) == unbroken
