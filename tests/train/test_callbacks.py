"""A run tells what it does: a summary, steps, epochs, its end; warnings; a line now and then where no terminal is."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from sdpl.cli.bars import shown
from sdpl.progress import Steps
from sdpl.train import loop, pace
from sdpl.train.callbacks import Callback
from sdpl.train.config_files import read_config
from sdpl.train.loop import train
from sdpl.train.pace import Pace, duration, rising
from sdpl.train.summary import label_warnings


class Recording(Callback):
    def __init__(self):
        self.steps, self.epochs, self.ends = [], [], []

    def on_step(self, step):
        self.steps.append(step)

    def on_epoch(self, epoch, ap):
        self.epochs.append((epoch, ap))

    def on_end(self, best):
        self.ends.append(best)


def test_a_callback_sees_every_step_and_epoch_and_the_end(config, tmp_path):
    seen, lines = Recording(), []
    train(read_config(config()), tmp_path / "run", report=lines.append, callbacks=[seen])
    assert [(s.epoch, s.step, s.total_steps) for s in seen.steps] == [
        (1, 1, 1), (1, 2, 2), (1, 3, 3), (2, 1, 4), (2, 2, 5), (2, 3, 6)
    ]  # fmt: skip
    assert all(math.isfinite(s.loss) and s.images_per_s > 0 for s in seen.steps)
    assert [log.epoch for log, _ in seen.epochs] == [1, 2]
    for log, ap in seen.epochs:
        known = [value for value in ap.values() if value is not None]
        assert len(ap) == 10
        assert sum(known) / len(known) == pytest.approx(log.val_mAP)
    assert seen.ends == [tmp_path / "run" / "model.ckpt"]
    said = [str(line) for line in lines]
    assert any(line.startswith("data: 18 training and 6 validation images, 10 categories; ") for line in said)
    assert any("map 2x2x256; parameters: " in line and "trained" in line for line in said)
    assert any(line.startswith("run: cpu (") and "2 epochs of 3 steps with 8 images; no cache" in line for line in said)
    assert any(line.startswith("memory: at least ") for line in said)
    assert any("images/s" in line and "left: epoch" in line for line in said)


def test_the_end_is_told_when_an_error_ends_a_run(config, tmp_path, monkeypatch):
    seen = Recording()

    def stop(self, t):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "_validate", stop)
    with pytest.raises(KeyboardInterrupt):
        train(read_config(config()), tmp_path / "run", callbacks=[seen])
    assert seen.ends == [None]


def test_a_rise_of_the_loss_is_said_once():
    assert rising([5.0]) is None
    assert rising([5.0, 5.2]) is None
    assert "from 4 to 6 in epoch 3" in rising([5.0, 4.0, 6.0])
    assert rising([5.0, 4.0, 6.0, 7.0]) is None
    assert rising([5.0, 4.0, 6.0, 4.1]) is None
    assert "in epoch 5" in rising([5.0, 4.0, 6.0, 4.0, 9.0])


def test_categories_that_cannot_be_learned_are_named(config):
    from sdpl.train.splits import load_data

    data, _ = load_data(read_config(config()))
    labels = data.labels.copy()
    labels[:, 3] = -1
    labels[labels[:, 5] < 0, 5] = 0
    assert list(label_warnings(data.with_labels(labels))) == [
        "warning: no known positive training label for 1 category (three): they cannot be learned",
        "warning: no known negative training label for 1 category (five): they cannot be learned",
    ]


def test_time_left_is_said_as_people_say_it():
    assert [duration(s) for s in (0, 0.2, 59, 61, 3540, 18600)] == [
        "0 s", "under 1 s", "59 s", "1 min", "59 min", "5 h 10 min"
    ]  # fmt: skip
    own = Pace(100, 20, 3, torch.device("cpu"))
    own.images, own.seconds, own.losses = 50, 10.0, 100.0
    note = own.note(epoch=0, done=50)
    assert note.startswith("loss 2.000, 5 images/s, ")
    assert note.endswith("left: epoch 10 s, run 1 min")  # 10 + 4 + 2 * 24 s


def test_without_a_terminal_a_long_step_is_a_line_now_and_then(capsys):
    with shown(every=0) as report:
        Steps(report, "epoch 1 [red] training", 40).advance(10, "loss 3.2")
    assert capsys.readouterr().err.splitlines() == ["epoch 1 [red] training: 10/40; loss 3.2"]
    with shown(every=1e9) as report:
        Steps(report, "epoch 1 training", 40).advance(10, "loss 3.2")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("seconds", [4, 3600])
def test_the_estimate_comes_from_the_run_s_own_steps(config, tmp_path, monkeypatch, seconds):
    clock = itertools.count(0, seconds)  # every step takes so long
    monkeypatch.setattr(pace, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(pace, "memory_mb", lambda device: 1000.0 * seconds)
    lines = []
    train(read_config(config(train={"epochs": 3})), tmp_path / "run", report=lines.append)
    (line,) = [str(line) for line in lines if str(line).startswith("estimate")]
    rate = 10 / (2 * seconds)  # the second and the third step, of 8 and 2 images
    epoch, left = (18 + 6) / rate, (6 + 2 * 24) / rate
    assert line == (
        f"estimate after 3 steps: {duration(epoch)} an epoch, {duration(left)} to the end of the run, "
        f"at {rate:.3g} images/s; memory up to now: {1000 * seconds:,} MB"
    )


def test_a_long_epoch_is_estimated_after_a_few_steps_and_once():
    own = Pace(1000, 200, 2, torch.device("cpu"))
    said = []
    for step in range(1, 51):
        own.last -= 1 if step > 1 else 60  # so long ago; the first step loads
        own.step(10, 1.0)
        said.append(own.estimate(0, 10 * step))
    assert [step for step, line in enumerate(said, 1) if line] == [10]
    assert said[9].startswith("estimate after 10 steps: 2 min an epoch, 4 min to the end of the run, at 10 images/s")


def test_a_single_step_is_estimated_by_itself():
    own = Pace(8, 2, 2, torch.device("cpu"))
    own.last -= 9
    own.step(8, 1.0)
    assert own.estimate(0, 8).startswith("estimate after 1 step: 11 s an epoch, 14 s to the end")


def test_a_finished_run_that_is_resumed_says_so(config, tmp_path):
    lines = []
    train(read_config(config()), tmp_path / "run")
    train(read_config(config()), tmp_path / "run", resume=True, report=lines.append)
    assert [str(line) for line in lines][-1] == "all 2 epochs are done; a larger train.epochs goes on."


def test_one_step_is_not_spoken_of_as_many(config, tmp_path):
    lines = []
    train(read_config(config(train={"epochs": 1, "batch_size": 64})), tmp_path / "run", report=lines.append)
    assert any("; 1 epoch of 1 step with 18 images; " in str(line) for line in lines)
