"""Training as a whole: it learns, it resumes exactly, it measures on what it has not trained on."""

import csv
import itertools
import shutil

import numpy as np
import pytest
import torch

import sdpl.train.loop as loop
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config import TrainConfig, read_config
from sdpl.train.data import read_coco
from sdpl.train.loop import learning_rate, load_data


def log(folder):
    with open(folder / "log.csv") as stream:
        return list(csv.DictReader(stream))


def test_writes_checkpoints_log_and_configuration(run_folder):
    assert sorted(p.name for p in run_folder.iterdir()) == ["config.yaml", "last.ckpt", "log.csv", "model.ckpt"]
    rows = log(run_folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["lr"]) == 0.0005
    assert all(0 <= float(row["val_map"]) <= 100 for row in rows)
    assert read_config(run_folder / "config.yaml").model.joint_dim == 24


def test_the_loss_falls_and_the_model_fits_what_it_sees(sdpl, config, tmp_path):
    path = config(train={"epochs": 12, "lr": 0.1, "warmup_lr": 0.05}, model={"inverse_temperature": 10.0})
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    losses = [float(row["train_loss"]) for row in log(tmp_path / "run")]
    assert losses[-1] < 0.8 * losses[0]


def state(path):
    return load_checkpoint(path)["state"]


def test_resuming_ends_with_the_same_weights(sdpl, config, tmp_path):
    path = config(train={"epochs": 4})
    assert sdpl("train", path, "--out", tmp_path / "whole").exit_code == 0

    original, calls = loop._Run.run_epoch, []

    def stop_after_two(self, progress):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(self.epoch)
        return original(self, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "run_epoch", stop_after_two)
        stopped = sdpl("train", path, "--out", tmp_path / "parts")
    assert stopped.exit_code == 2
    assert "interrupted; add --resume" in stopped.stderr
    torch.manual_seed(99)
    assert sdpl("train", path, "--out", tmp_path / "parts", "--resume").exit_code == 0
    for name in ("last.ckpt", "model.ckpt"):
        whole, parts = (state(tmp_path / run / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert [r["train_loss"] for r in log(tmp_path / "whole")] == [r["train_loss"] for r in log(tmp_path / "parts")]


def test_a_run_is_never_overwritten_by_accident(fails, config, tmp_path, run_folder):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    assert "already holds a run: add --resume" in fails("train", config(), "--out", copy)
    message = fails("train", config(train={"epochs": 3, "lr": 0.5}), "--out", copy, "--resume")
    assert "train.epochs: 2 -> 3; train.lr: 0.002 -> 0.5" in message
    assert "no such checkpoint" in fails("train", config(), "--out", tmp_path / "new", "--resume")


def test_a_stop_between_the_two_checkpoints_loses_no_best(sdpl, config, tmp_path, monkeypatch):
    values = iter([10.0, 90.0, 50.0])
    monkeypatch.setattr(loop._Run, "_validate", lambda self, progress: next(values))
    original, saved = loop.save_checkpoint, []

    def stop_at_fourth(path, *rest):
        saved.append(path.name)
        if len(saved) == 4:  # epoch 2 has written one of its two
            raise KeyboardInterrupt
        original(path, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", stop_at_fourth)
    path = config(train={"epochs": 3})
    sdpl("train", path, "--out", tmp_path / "run")
    monkeypatch.setattr(loop, "save_checkpoint", original)
    values = iter([90.0, 50.0])
    assert sdpl("train", path, "--out", tmp_path / "run", "--resume").exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["resume"]["epoch"] == 2


def test_resuming_on_other_data_is_refused(sdpl, fails, config, scenes, tmp_path):
    moved = shutil.copytree(scenes, tmp_path / "scenes")
    annotations = moved / "annotations" / "instances_train.json"
    path = config(data={"train": {"annotations": str(annotations)}}, train={"epochs": 1})
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    text = annotations.read_text()
    annotations.write_text(text.replace('"one"', '"swap"').replace('"two"', '"one"').replace('"swap"', '"two"'))
    assert "data: other images, labels or categories" in fails("train", path, "--out", tmp_path / "run", "--resume")
    annotations.write_text(text)
    (tmp_path / "run" / "model.ckpt").unlink()
    assert "the best checkpoint, is missing" in fails("train", path, "--out", tmp_path / "run", "--resume")


def test_without_validation_positives_the_newest_epoch_is_kept(sdpl, config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop._Run, "_validate", lambda self, progress: float("nan"))
    assert sdpl("train", config(), "--out", tmp_path / "run").exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["resume"]["epoch"] == 2


def test_a_stop_before_the_first_epoch_does_not_promise_a_resume(fails, config, tmp_path, monkeypatch):
    def stop(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "run_epoch", stop)
    assert "interrupted; no epoch was finished" in fails("train", config(), "--out", tmp_path / "run")


def test_an_unwritable_folder_is_named(fails, config, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("train", config(), "--out", tmp_path / "file" / "run")


def test_validation_images_are_not_trained_on_and_labels_are_masked_first(config, scenes):
    settings = read_config(config(data={"known_proportion": 0.5}))
    train, val = load_data(settings)
    assert not set(train.images) & set(val.images)
    assert (len(train), len(val)) == (18, 6)
    full = dict(zip(*(lambda d: (d.images, d.labels))(read_coco(settings.data.train.annotations)), strict=True))
    for split in (train, val):
        for path, labels in zip(split.images, split.labels, strict=True):
            assert set(np.unique(labels)) <= {-1, 0, 1}
            assert (labels[labels != 0] == full[path][labels != 0]).all()
    known = np.mean([(split.labels != 0).mean() for split in (train, val)])
    assert known == pytest.approx(0.5, abs=0.1)


def test_a_named_validation_split_is_taken_as_it_is(config, scenes):
    val = {"annotations": str(scenes / "annotations" / "instances_test.json")}
    train, held_out = load_data(read_config(config(data={"val": val, "known_proportion": 0.5})))
    assert len(train) == 24
    assert len(held_out) == 8
    assert (held_out.labels != 0).all()


def test_schedule():
    config = TrainConfig(epochs=100)
    rates = [learning_rate(config, epoch) for epoch in range(100)]
    assert rates[0] == 0.0005
    assert rates[1] == pytest.approx(0.002, rel=1e-3)
    assert rates[50] == pytest.approx(0.001, rel=1e-6)
    assert rates[99] < 1e-6
    assert all(a >= b for a, b in itertools.pairwise(rates[1:]))


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "xpu"])
def test_a_device_that_is_not_here_is_named(fails, config, tmp_path, device):
    message = fails("train", config(train={"device": device}), "--out", tmp_path / "run")
    assert f"train.device = '{device}' cannot be used" in message
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(fails, config, tmp_path):
    message = fails("train", config(train={"lr": 1e30, "warmup_lr": 1e30, "epochs": 4}), "--out", tmp_path / "run")
    assert "the loss is nan in epoch" in message
    one_batch = config(train={"lr": 1e30, "warmup_lr": 1e30, "batch_size": 64})
    assert "the model diverged in epoch 1" in fails("train", one_batch, "--out", tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": "manual", "decoupling": "none"},
        {"prompts": "shared", "class_token_position": "middle", "decoupling": "convolutional"},
        {"pooling": "trunk", "probability": "softmax", "learn_temperature": True},
    ],
)
def test_the_method_s_switches_train(sdpl, config, tmp_path, change):
    """That each of them exports with the same scores is in tests/export/test_switches.py."""
    path = config(model=change, train={"epochs": 1, "loss": "partial-bce"})
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    assert np.isfinite(float(log(tmp_path / "run")[0]["train_loss"]))
