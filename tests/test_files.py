import errno
import os
import signal
import subprocess
import sys

import pytest

from sdpl.atomic import SUFFIX, Temporary, exchange
from sdpl.errors import UserError
from sdpl.files import LOCK, only_one_run, recover_folder, replace_file, replace_folder, share_file


def names(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != LOCK)


def test_file_is_replaced_whole(tmp_path):
    (tmp_path / "a").write_text("old")
    with replace_file(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), replace_file(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_folder_is_replaced_whole(tmp_path):
    for text in ("old", "new"):
        with replace_folder(tmp_path / "a", lambda path: True) as temporary:
            (temporary / "x").write_text(text)
        assert (tmp_path / "a" / "x").read_text() == text
    assert names(tmp_path) == ["a"]


def test_failure_keeps_the_old_folder_and_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(ValueError, match="half"), replace_folder(tmp_path / "a", lambda path: True) as temporary:
        (temporary / "x").write_text("half")
        raise ValueError("half")
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_during_the_swap_loses_nothing(tmp_path, monkeypatch, call):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    original, calls = os.replace, []
    monkeypatch.setattr("sdpl.files.exchange", lambda new, path: False)  # where the system has none

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == call:
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "a", lambda path: True) as temporary:
        (temporary / "x").write_text("new")
    assert (tmp_path / "a" / "x").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_a_folder_that_is_not_ours_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    with (
        pytest.raises(UserError, match="exists and was not made by sdpl"),
        replace_folder(tmp_path / "thesis", lambda p: False),
    ):
        pass
    assert names(tmp_path) == ["thesis"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_shared_file_stays_when_the_other_name_is_replaced(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda source, target: (_ for _ in ()).throw(OSError(errno.EPERM, "")))
    for content in ("one", "two"):
        with replace_file(tmp_path / "a") as temporary:
            temporary.write_text(content)
        share_file(tmp_path / "a", tmp_path / "b")
        share_file(tmp_path / "a", tmp_path / "b")  # again, when they are one file already
        assert (tmp_path / "b").read_text() == content
    with replace_file(tmp_path / "a") as temporary:
        temporary.write_text("three")
    assert (tmp_path / "b").read_text() == "two"
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_errors_of_the_system_become_one_line(tmp_path, code):
    for place in (replace_file(tmp_path / "a"), replace_folder(tmp_path / "b", lambda p: True)):
        with (
            pytest.raises(UserError, match=f"cannot write .*{os.strerror(code)}; nothing was changed") as raised,
            place,
        ):
            raise OSError(code, os.strerror(code))
        assert ("Free space" in str(raised.value)) == (code == errno.ENOSPC)
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write .* nothing was changed there. Choose another place"),
        replace_file(tmp_path / "a" / "b"),
    ):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_two_folders_change_places_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*/*"))] == ["a/b", "b/a"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    """Where names cannot be exchanged, the old folder is beside its place for a moment; the next use puts it back."""
    code = f"""
import os, signal
from pathlib import Path
import sdpl.files
sdpl.files.exchange = lambda new, path: False
original, calls = os.replace, []
def replace(source, target):
    calls.append(target)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, target)
os.replace = replace
with sdpl.files.replace_folder(Path({str(tmp_path / "a")!r}), lambda path: True) as folder:
    (folder / "x").write_text("new")
"""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert not (tmp_path / "a").exists()
    recover_folder(tmp_path / "a")
    assert (tmp_path / "a" / "x").read_text() == "old"
    with replace_folder(tmp_path / "a", lambda path: True) as folder:  # and cleans up behind the killed process
        (folder / "x").write_text("newer")
    assert names(tmp_path) == ["a"]


def test_only_temporaries_of_dead_processes_are_deleted(tmp_path):
    living = Temporary(tmp_path / "a", is_folder=True)
    (tmp_path / f".a.dead{SUFFIX}").mkdir()
    (tmp_path / f".b.dead{SUFFIX}").write_text("half")
    with replace_folder(tmp_path / "a", lambda path: True) as folder:
        (folder / "x").write_text("")
    assert names(tmp_path) == [living.path.name, "a"]
    living.close()
    assert names(tmp_path) == ["a"]


def test_a_second_run_into_a_folder_is_refused(tmp_path):
    again = (
        f"from sdpl.files import only_one_run\nwith only_one_run(__import__('pathlib').Path({str(tmp_path)!r})): pass"
    )
    with only_one_run(tmp_path):
        refused = subprocess.run([sys.executable, "-c", again], capture_output=True, text=True)
    assert "another run is writing into it" in refused.stderr
    assert subprocess.run([sys.executable, "-c", again]).returncode == 0


def test_a_device_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a device or a pipe"), replace_file(tmp_path / "pipe"):
        pass


def test_content_is_on_the_disk_before_it_takes_its_place_and_the_place_after(tmp_path, monkeypatch):
    """So that a power cut leaves the old or the new, never an empty file under the right name."""
    calls = []
    monkeypatch.setattr("sdpl.files.sync", lambda path: calls.append("sync"))
    original = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or original(a, b))
    with replace_file(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert calls == ["sync", "replace", "sync"]
    calls.clear()
    with replace_folder(tmp_path / "b", lambda path: True) as folder:
        (folder / "inside").write_text("x")
    assert calls == ["sync", "sync", "replace", "sync"]  # the folder and its file; its place
