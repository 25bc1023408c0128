"""A real Ray cluster of two workers on this machine: workers killed, the driver killed, a shard that kills workers."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import crashing_decoder
import pytest

from sdpl.scale import Options
from sdpl.scale.plan import Shard
from sdpl.scale.ray_engine import _Remote
from sdpl.scale.worker import Worker

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'")
START = "import sys; from sdpl.cli import main; main(['score', *sys.argv[1:]])"
# A file system whose files kill the process that opens them, for a shard that no worker survives.
DEADLY = """
import os, fsspec
from fsspec.spec import AbstractFileSystem
class Deadly(AbstractFileSystem):
    protocol = "deadly"
    def info(self, path, **_): return {"name": path, "size": 1, "type": "file"}
    def _open(self, path, *_, **__): os._exit(1)
fsspec.register_implementation("deadly", Deadly)
"""


def start(bundle, *words, environment=None):
    command = [sys.executable, "-c", START, *map(str, (bundle, *words)), "--ray", "local", "--workers", "2"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    )


def descendants(pid: int) -> list[int]:
    """Processes that came from this one."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, level = [], [pid]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


def workers_of(pid: int) -> list[int]:
    def name(child):
        try:
            return Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            return ""

    return [child for child in descendants(pid) if name(child).startswith("ray::_Remote")]


@pytest.fixture(scope="module")
def long(tmp_path_factory, photos, write_tar):
    """12 shards of 480 pictures: seconds of work."""
    folder = tmp_path_factory.mktemp("long")
    data = [photo.read_bytes() for photo in photos]
    return [
        write_tar(folder / f"{i:02d}.tar", [(f"{i:02d}-{k:03d}.jpg", data[k % 24]) for k in range(480)])
        for i in range(12)
    ]


@pytest.mark.slow
@needs_ray
def test_killed_workers_and_a_killed_driver_lose_nothing(bundle, long, rows, tmp_path):
    one = tmp_path / "one"
    unbroken = subprocess.run(
        [sys.executable, "-c", START, *map(str, (bundle, *long, "--out", one, "--batch", 16))], capture_output=True
    )
    assert unbroken.returncode == 0
    out = tmp_path / "out"
    first = start(bundle, *long, "--out", out, "--batch", 16)
    while not list(out.glob("shard-*.parquet")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    os.kill(workers_of(first.pid)[0], signal.SIGKILL)
    family = descendants(first.pid)
    first.kill()  # the driver; Ray's own processes end with it
    first.communicate()
    for _ in range(600):  # a worker may still finish the shard it is in
        if not any(Path(f"/proc/{pid}").exists() for pid in family):
            break
        time.sleep(0.1)
    finished = {path.name: path.read_bytes() for path in out.glob("shard-*.parquet")}
    assert 1 <= len(finished) < 12
    second = start(bundle, *long, "--out", out, "--batch", 16, "--json")
    while len(list(out.glob("shard-*.parquet"))) == len(finished) or not workers_of(second.pid):
        assert second.poll() is None, second.communicate()
        time.sleep(0.01)
    os.kill(workers_of(second.pid)[0], signal.SIGKILL)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    summary = json.loads(output.splitlines()[-1])
    assert summary["shards_before"] >= len(finished)
    assert (summary["all_images"], summary["all_bad"], summary["failures"]) == (12 * 480, 0, {})
    for name, content in finished.items():
        assert (out / name).read_bytes() == content
    assert rows(out) == rows(one)


@pytest.mark.slow
@needs_ray
def test_a_shard_that_kills_its_workers_is_reported_and_the_rest_done(bundle, tars, rows, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DEADLY)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    words = ("deadly://0.tar", *tars[:3], "--out", tmp_path / "out", "--tries", 2)
    output, errors = start(bundle, *words, environment=environment).communicate(timeout=120)
    assert "failed: deadly://0.tar: its worker was lost." in errors
    assert "1 of 4 shards failed; the same command tries them again" in errors
    assert "3 of 4 shards, 12 images" in output
    assert len(rows(tmp_path / "out")) == 12


@pytest.mark.slow
@needs_ray
def test_images_that_kill_their_worker_are_rows_with_an_error(bundle, photos, write_tar, rows, tmp_path):
    data = [photo.read_bytes() for photo in photos[:4]]
    tars = [
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{k}.jpg", content) for k, content in enumerate(contents)])
        for name, contents in (("a", data), ("b", [data[0], b"SIGSEGV", data[1]]), ("c", [b"FOREVER", *data]))
    ]
    words = (*tars, "--out", tmp_path / "out", "--image-timeout", 3)
    output, errors = start(bundle, *words, environment=crashing_decoder.environment(tmp_path)).communicate(timeout=180)
    assert "3 of 3 shards, 12 images, 2 with an error" in output, errors
    found = {key: row["error"] for (_, key), row in rows(tmp_path / "out").items() if row["error"]}
    assert found.keys() == {"b1", "c0"}
    assert "ends the process that decodes it (SIGSEGV)" in found["b1"]
    assert "takes too long to decode" in found["c0"]


@pytest.mark.slow
@needs_ray
def test_in_a_pipeline_of_ray_data(bundle, scenes, tmp_path):
    code = f"""
import ray, numpy as np
from sdpl.runtime import Recognizer
from sdpl.scale import RecognizerActor
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
photos = ray.data.read_binary_files({str(scenes / "train")!r}, include_paths=True)
scored = photos.map_batches(
    RecognizerActor, fn_constructor_args=[{str(bundle)!r}, "auto", 1], batch_size=8,
    compute=ray.data.ActorPoolStrategy(size=1))
rows = scored.drop_columns(["bytes"]).take_all()
with Recognizer.open({str(bundle)!r}) as recognizer:
    for row in rows:
        expected = recognizer.scores(recognizer.preprocess(row["path"])[None])[0]
        np.testing.assert_allclose(row["scores"], expected, atol=1e-6)
assert len(rows) == 24 and not any(row["error"] for row in rows)
print("all the same")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "all the same" in result.stdout, result.stderr


@pytest.mark.slow
@needs_ray
def test_a_cluster_whose_workers_cannot_start(bundle, tars, tmp_path):
    out = tmp_path / "out"
    process = start(tmp_path / "gone.sdpl", tars[0], "--out", out)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.count("\n") == 1
    assert "2 of 2 workers could not start" in errors
    assert "no such bundle" in errors


def test_a_restarted_worker_with_another_version_scores_nothing(bundle, tars, tmp_path):
    options = Options(str(bundle), str(tmp_path))
    remote = _Remote(options, "gone")
    shard = Shard(0, "tar", (str(tars[0]),), 0)
    with_worker = Worker(options)
    outcome = remote.score("job", replace(with_worker.model, sdpl="0.1.0"), shard)
    with_worker.close()
    assert outcome.failure == f"a restarted worker differs: sdpl was 0.1.0, is now {with_worker.model.sdpl}"
    assert outcome.again
    assert not list(tmp_path.glob("shard-*"))
    assert remote.score("job", with_worker.model, shard).counts.images == 4
    assert remote.score("job", with_worker.model, shard).counts.images == 4  # it is there already
    remote.worker.close()
