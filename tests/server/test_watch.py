import os
import shutil
from pathlib import Path

import pytest

from sdpl.manifest import MANIFEST
from sdpl.server.watch import Watch

PROVED, AGAIN, GONE = "it is being proved", "it is tried again", "is gone"


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "model.sdpl"
    write(made, "one", b"weights of one")
    return made


def write(folder: Path, manifest: str, model: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(manifest)
    (folder / "model.onnx").write_bytes(model)


def looks(watch: Watch, times: int = 1) -> list[tuple[int, bool, str]]:
    return [found for _ in range(times) for found in watch.look()]


def test_another_manifest_is_taken_at_the_next_look_and_once(folder):
    watch = Watch([str(folder)])
    assert looks(watch, 3) == []
    write(folder, "two", b"weights of two")
    [(model, is_to_load, line)] = looks(watch, 3)
    assert (model, is_to_load) == (0, True)
    assert PROVED in line


def test_a_refused_bundle_is_tried_again_when_its_files_have_changed_and_rest(folder):
    watch = Watch([str(folder)])
    (folder / MANIFEST).write_text("two")  # the first file of a copy
    assert len(looks(watch)) == 1
    watch.refused(0)
    assert looks(watch, 3) == []  # nothing has changed since: a bad bundle is not proved for ever
    for part in (b"half", b"half of it, and the rest"):
        (folder / "model.onnx").write_bytes(part)
        assert looks(watch) == []  # who copies has not ended
    [(_, is_to_load, line)] = looks(watch, 3)
    assert is_to_load
    assert AGAIN in line


def test_files_of_a_bundle_that_was_taken_and_its_cache_are_of_no_account(folder):
    watch = Watch([str(folder)])
    os.utime(folder / "model.onnx", (1, 1))
    assert looks(watch, 3) == []
    watch.refused(0)
    looks(watch, 2)
    watch.refused(0)
    (folder / "cache").mkdir()
    (folder / "cache" / "timings.json").write_text("{}")
    assert looks(watch, 3) == []


def test_a_refusal_counts_until_that_engine_has_taken_the_bundle(folder):
    watch = Watch([str(folder)])
    watch.refused(0, engine=1)
    watch.settled(0, engine=0)
    os.utime(folder / "model.onnx", (1, 1))
    assert [AGAIN in line for _, _, line in looks(watch, 3)] == [True]
    watch.refused(0, engine=1)
    watch.settled(0, engine=1)
    os.utime(folder / "model.onnx", (2, 2))
    assert looks(watch, 3) == []


def test_a_link_that_leads_elsewhere_is_another_bundle(folder, tmp_path):
    other, link = tmp_path / "other.sdpl", tmp_path / "current.sdpl"
    write(other, "two", b"weights of two")
    link.symlink_to(folder)
    watch = Watch([str(link)])
    link.unlink()
    link.symlink_to(other)
    assert [is_to_load for _, is_to_load, _ in looks(watch, 2)] == [True]


def test_a_bundle_that_is_gone_is_said_once_and_loads_nothing(folder):
    watch = Watch([str(folder)])
    shutil.rmtree(folder)
    assert looks(watch) == []  # a rename may have two moments
    [(_, is_to_load, line)] = looks(watch, 3)
    assert not is_to_load
    assert GONE in line
    write(folder, "two", b"weights of two")
    assert [PROVED in line for _, _, line in looks(watch, 2)] == [True]
