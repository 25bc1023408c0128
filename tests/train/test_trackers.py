"""TensorBoard, W&B and MLflow follow a run as callbacks; each is a package of its own."""

import sys

import pytest

from sdpl.install import install_line
from sdpl.train.callbacks import StepLog
from sdpl.train.config_files import read_config
from sdpl.train.log import EpochLog
from sdpl.train.trackers import TensorBoard, trackers, values_of_epoch

EPOCH = EpochLog(epoch=1, lr=0.1, train_loss=2.0, val_mAP=50.0, unreadable=0, seconds=3.0)


def step(total, loss):
    return StepLog(epoch=1, step=total, total_steps=total, loss=loss, lr=0.1, images_per_s=5.0)


def test_nothing_is_followed_unless_asked(config, tmp_path):
    assert trackers(read_config(config()), tmp_path, 0) == []


def test_events_of_steps_that_are_done_again_are_taken_back(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    first = TensorBoard(tmp_path, 0)
    for total in (1, 2, 3):
        first.on_step(step(total, float(total)))
    first.on_end(None)
    resumed = TensorBoard(tmp_path, 2)
    resumed.on_step(step(2, 20.0))
    resumed.on_epoch(EPOCH, {"cat": 40.0, "dog": None})
    resumed.on_end(tmp_path)
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in read.Scalars("step/loss")] == [(1, 1.0), (2, 20.0)]
    assert [(event.step, event.value) for event in read.Scalars("AP/cat")] == [(2, 40.0)]
    assert "AP/dog" not in read.Tags()["scalars"]


def test_an_epoch_s_values_have_every_category_s_ap():
    values = values_of_epoch(EPOCH, {"cat": 40.0, "dog": None})
    assert values == {"epoch/loss": 2.0, "epoch/val mAP": 50.0, "epoch/lr": 0.1, "AP/cat": 40.0}


def test_without_its_package_the_extra_is_named(fails, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    message = fails("train", config(train={"tensorboard": True}), "--out", tmp_path / "run")
    assert f"this command needs tensorboard: {install_line('tensorboard')}" in message
    monkeypatch.setitem(sys.modules, "wandb", None)
    message = fails("train", config(train={"trackers": ["wandb"]}), "--out", tmp_path / "other")
    assert f"train.trackers names wandb, which is not installed: {install_line('wandb')}" in message


@pytest.mark.slow
def test_weights_and_biases_offline(sdpl, config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert sdpl("train", config(train={"trackers": ["wandb"]}), "--out", tmp_path / "run").exit_code == 0
    assert list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_mlflow_into_a_local_file(sdpl, config, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    assert sdpl("train", config(train={"trackers": ["mlflow"]}), "--out", tmp_path / "run").exit_code == 0
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FINISHED"
    assert {"epoch/val mAP", "step/loss", "AP/zero"} <= run.data.metrics.keys()
    assert run.data.params["train.epochs"] == "2"
