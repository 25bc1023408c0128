import sys

import pytest

from sdpl.install import install_line
from sdpl.train.log import Events, write_csv

ROW = {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_mAP": 50.0, "unreadable": 0, "seconds": 3.0}


def test_the_csv_is_written_whole(tmp_path):
    write_csv(tmp_path / "log.csv", [ROW])
    write_csv(tmp_path / "log.csv", [ROW, {**ROW, "epoch": 2}])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["epoch,lr,train_loss,val_mAP,unreadable,seconds", "1,0.1,2.0,50.0,0,3.0", "2,0.1,2.0,50.0,0,3.0"]


def test_switched_off_nothing_is_written(tmp_path):
    events = Events(tmp_path, on=False, step=0)
    events.write(1, {"step/loss": 1.0})
    events.close()
    assert not list(tmp_path.iterdir())


def test_events_of_steps_that_are_done_again_are_taken_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = Events(tmp_path, on=True, step=0)
    for step in (1, 2, 3):
        first.write(step, {"step/loss": float(step)})
    first.close()
    resumed = Events(tmp_path, on=True, step=2)
    resumed.write(2, {"step/loss": 20.0})
    resumed.close()
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("step/loss")] == [(1, 1.0), (2, 20.0)]


def test_without_its_package_the_extra_is_named(fails, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = fails("train", config(train={"tensorboard": True}), "--out", tmp_path / "run")
    assert f"this command needs tensorboard: {install_line('tensorboard')}" in message
