"""torchrun with a rank that is killed: the same command with `--resume` ends where an unbroken run ends."""

import subprocess
import sys

import pytest
import torch

from sdpl.train.checkpoint import load_checkpoint

# Rank 1 kills itself at the step that DIE names.
SCRIPT = """
import os, signal, sys
from sdpl.cli import main
from sdpl.train.step import Learner
step = Learner.step
def step_or_die(self, *rest, **named):
    if os.environ["RANK"] == "1" and str(self.steps) == os.environ.get("DIE"):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *rest, **named)
Learner.step = step_or_die
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_with_a_killed_rank_goes_on(config, tmp_path, monkeypatch):
    path = config(train={"epochs": 2, "batch_size": 5, "checkpoint_steps": 1, "lr": 0.05})
    (tmp_path / "train.py").write_text(SCRIPT)

    def torchrun(out, *words):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, tmp_path / "train.py", "train", path, "--out", out, *words]
        return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=tmp_path)

    whole = torchrun(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    monkeypatch.setenv("DIE", "2")
    killed = torchrun(tmp_path / "parts")
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    stopped = load_checkpoint(tmp_path / "parts" / "last.ckpt")["resume"]
    assert (stopped["epoch"], stopped["step"]) == (0, 2)
    monkeypatch.delenv("DIE")
    again = torchrun(tmp_path / "parts", "--resume")
    assert again.returncode == 0, again.stderr
    for name in ("last.ckpt", "model.ckpt"):
        a, b = (load_checkpoint(tmp_path / run / name)["state"] for run in ("whole", "parts"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
