"""What may not be read or written, by a process that is not almighty."""

import json
import shutil
import subprocess
import sys

import pytest

WITHOUT_RIGHTS = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]  # root too is then bound by a file's mode
START = "import sys; from sdpl.cli import main; main(sys.argv[1:])"
pytestmark = pytest.mark.skipif(
    shutil.which("setpriv") is None or subprocess.run([*WITHOUT_RIGHTS, "true"], capture_output=True).returncode != 0,
    reason="setpriv takes rights away, where it may",
)


def run(*words):
    command = [*WITHOUT_RIGHTS, sys.executable, "-c", START, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "warning: "))]
    return result.returncode, result.stdout, lines


def test_what_may_not_be_read_is_named(bundle, scenes, tmp_path):
    folder, photo = tmp_path / "closed", tmp_path / "photo.jpg"
    folder.mkdir()
    shutil.copy(scenes / "test" / "000000.jpg", photo)
    shutil.copy(photo, folder / "a.jpg")
    photo.chmod(0)
    folder.chmod(0)
    try:
        status, _, errors = run("predict", bundle, photo)
        assert (status, errors[0]) == (2, f"error: {photo}: permission denied.")
        listing = f"error: {folder}: the folder cannot be listed (Permission denied)."
        assert run("predict", bundle, folder)[2] == [listing]
        assert run("predict", bundle, tmp_path, "--recursive")[2] == [listing]  # not left out without a word
        denied = f"error: {folder}/a.jpg: permission denied; nothing was begun."
        assert run("score", bundle, folder / "a.jpg", "--out", tmp_path / "out")[2] == [denied]
        (tmp_path / "out").mkdir(mode=0o300)
        photo.chmod(0o600)
        status, _, errors = run("score", bundle, photo, "--out", tmp_path / "out")
        assert (status, len(errors)) == (2, 1)
        assert "cannot be listed (Permission denied); choose another --out" in errors[0]
    finally:
        folder.chmod(0o700)


def test_a_bundle_that_cannot_be_written_is_verified_and_its_proof_decides(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "m.sdpl")
    before = json.loads((copy / "manifest.json").read_text())
    copy.chmod(0o500)
    try:
        status, out, lines = run("verify", copy)
        assert (status, len(lines)) == (0, 1)
        assert "FAILED" not in out
        assert out.startswith("cpu:fp32: ")
        assert lines[0].startswith(f"warning: the result was not recorded, nor were the times: cannot write {copy}")
        with (copy / "model.onnx").open("ab") as file:
            file.write(b"x")
        status, _, lines = run("verify", copy)
        assert (status, len(lines)) == (2, 1)
        assert lines[0].startswith(f"error: {copy}: cpu:fp32 failed: ")
    finally:
        copy.chmod(0o700)
    assert json.loads((copy / "manifest.json").read_text()) == before
