"""torchrun with a rank that is killed: started again by torchrun, or by the same command with `--resume`, the run ends
where an unbroken run ends."""

import os
import subprocess
import sys

import pytest
import torch

from configs import write_config
from sdpl.train.checkpoint import load_checkpoint

# Rank 1 of the first attempt kills itself at the step that DIE names, or fails by an error of the user at the one that
# FAILS names; LATE makes it the last to come to the second.
SCRIPT = """
import os, signal, sys, time
from sdpl.cli import main
from sdpl.errors import UserError
from sdpl.train.step import Learner
step = Learner.step
dies = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
def step_or_die(self, *rest, **named):
    if dies and str(self.steps) == os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    if dies and str(self.steps) == os.environ.get("FAILS"):
        raise UserError("photo.jpg: is damaged.")
    return step(self, *rest, **named)
Learner.step = step_or_die
if not dies and os.environ["RANK"] == "1":
    time.sleep(float(os.environ.get("LATE", "0")))
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def configured(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "train.py").write_text(SCRIPT)
    return write_config(folder, scenes, train={"epochs": 2, "batch_size": 5, "checkpoint_steps": 1, "lr": 0.05})


@pytest.fixture(scope="module")
def torchrun(configured):
    def run(out, *words, launcher=()):
        started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *launcher]
        command = [*started, configured.parent / "train.py", "train", configured, "--out", out, *words]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=configured.parent)

    return run


@pytest.fixture(scope="module")
def whole(torchrun, tmp_path_factory):
    """The folder of an unbroken run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    result = torchrun(out)
    assert result.returncode == 0, result.stderr
    return out


def assert_equal_runs(one, other):
    for name in ("last.ckpt", "model.ckpt"):
        a, b = (load_checkpoint(run / name)["state"] for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_run_with_a_killed_rank_goes_on(torchrun, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DIE", "2")
    killed = torchrun(tmp_path / "parts")
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    stopped = load_checkpoint(tmp_path / "parts" / "last.ckpt")["resume"]
    assert (stopped["epoch"], stopped["step"]) == (0, 2)
    monkeypatch.delenv("DIE")
    again = torchrun(tmp_path / "parts", "--resume")
    assert again.returncode == 0, again.stderr
    assert_equal_runs(whole, tmp_path / "parts")


@pytest.mark.slow
def test_torchrun_itself_starts_a_killed_rank_again(torchrun, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DIE", "5")
    monkeypatch.setenv("LATE", "2")  # the other then reads the store before this one has written to it
    result = torchrun(tmp_path / "parts", launcher=["--max-restarts", "1"])
    assert "exitcode: -9" in result.stderr
    assert result.returncode == 0, result.stderr
    assert_equal_runs(whole, tmp_path / "parts")


def said(result):
    """What sdpl said of an error; other lines are torchrun's."""
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once(torchrun, configured, tmp_path, monkeypatch):
    monkeypatch.setenv("FAILS", "2")
    before = set(configured.parent.glob("sdpl-error-*"))
    result = torchrun(tmp_path / "run")
    assert result.returncode == 1
    assert said(result) == ["error: photo.jpg: is damaged."]
    assert set(configured.parent.glob("sdpl-error-*")) == before  # none of what the other process then saw


@pytest.mark.slow
def test_an_error_of_all_is_one_line_and_ours_is_the_last_word(configured, tmp_path):
    options = ["--standalone", "--nproc-per-node", "2", "-m", "sdpl"]
    words = ["train", str(configured), "--out", str(tmp_path / "run"), "--set", "train.epochs=many"]
    command = [sys.executable, "-m", "sdpl.train.torchrun", *options, *words]
    threads = {"OMP_NUM_THREADS": "1"}  # torchrun writes lines of its own about one that it has to choose
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **threads})
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert "train.epochs = 'many'" in line
