"""Which epoch a run keeps, under which names, and why."""

import numpy as np
import pytest
import torch

from sdpl.data.images import LabelledImages
from sdpl.train import keeping, loop
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config_files import read_config
from sdpl.train.keeping import Keeper, kept_epoch, too_coarse, why_kept


def split(positives, categories=1):
    labels = np.full((max(positives, 1) + 2, categories), -1, np.int8)
    labels[:positives] = 1
    return LabelledImages(tuple(f"{i}.jpg" for i in range(len(labels))), labels, tuple(map(str, range(categories))))


def rows(*values):
    return [{"epoch": i, "val_mAP": value} for i, value in enumerate(values, 1)]


def test_the_kept_epoch_is_the_first_with_the_highest_map():
    assert kept_epoch(rows(10.0, 90.0, 90.0, 50.0), keeps_last=False) == 2
    assert kept_epoch(rows(10.0, 90.0, 50.0), keeps_last=True) == 3
    assert kept_epoch(rows(float("nan"), float("nan")), keeps_last=False) == 2


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_newest_model_is_the_epoch_that_the_report_calls_kept(monkeypatch, keep):
    monkeypatch.setattr(keeping, "MAX_AP_ERROR", 1.0)
    values = np.random.default_rng(0).choice([float("nan"), 10.0, 50.0, 90.0], (50, 6))
    for mAPs in values.tolist():
        keeper = Keeper(keep, split(5), best_too=True)
        names = [keeper.names(mAP) for mAP in mAPs]
        newest = max(epoch for epoch, written in enumerate(names, 1) if "model.ckpt" in written)
        assert newest == kept_epoch(rows(*mAPs), keeps_last=keep == "last")
        assert all(written[-1] == "last.ckpt" for written in names)
        best = [epoch for epoch, written in enumerate(names, 1) if "best.ckpt" in written]
        assert best[-1] == kept_epoch(rows(*mAPs), keeps_last=False)


def test_the_reason_names_the_bound_and_the_positives():
    assert why_kept("last", split(5)) == "train.keep: last; the weights of the last epoch are kept."
    assert too_coarse(split(5)) in why_kept("best", split(5))
    assert "at most 5.0 points." in why_kept("best", split(5))
    text = why_kept("best", split(400))
    assert "highest validation mAP" in text
    assert "400 positives: its mAP may be off by 2.5 points, within the bound of 5.0 points" in text


def test_an_epoch_is_chosen_where_the_bound_allows_it(monkeypatch):
    monkeypatch.setattr(keeping, "MAX_AP_ERROR", 1.0)
    assert too_coarse(split(1)) is None


@pytest.fixture
def validated(monkeypatch):
    """The next epochs' validation mAP, on a split that can choose by it."""

    def give(*mAPs):
        values = iter(mAPs)
        monkeypatch.setattr(keeping, "MAX_AP_ERROR", 1.0)
        monkeypatch.setattr(loop._Run, "_validate", lambda self, t: next(values))

    return give


@pytest.mark.slow
def test_a_stop_between_the_two_checkpoints_loses_no_best(sdpl, config, tmp_path, monkeypatch, validated):
    validated(10.0, 90.0, 50.0)
    original, shared = loop.share_file, []

    def stop_at_second(source, path):
        shared.append(path.name)
        if len(shared) == 2:  # epoch 2 has written one of its two
            raise KeyboardInterrupt
        original(source, path)

    monkeypatch.setattr(loop, "share_file", stop_at_second)
    path = config(train={"epochs": 3})
    sdpl("train", path, "--out", tmp_path / "run")
    assert shared == ["last.ckpt"] * 2
    monkeypatch.setattr(loop, "share_file", original)
    validated(90.0, 50.0)
    assert sdpl("train", path, "--out", tmp_path / "run", "--resume").exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["resume"]["epoch"] == 2


@pytest.mark.slow
def test_an_epoch_writes_the_frozen_towers_once(sdpl, config, tmp_path, monkeypatch, validated):
    validated(10.0, 90.0, 50.0)
    original, written = torch.save, []
    monkeypatch.setattr(torch, "save", lambda content, path: (written.append(path.name), original(content, path)))
    assert sdpl("train", config(train={"epochs": 3}), "--out", tmp_path / "run").exit_code == 0
    assert [name.split(".")[1] for name in written] == ["model", "model", "last"]  # .model.ckpt.<random>.sdpl-tmp
    epochs = [load_checkpoint(tmp_path / "run" / name)["resume"]["epoch"] for name in ("model.ckpt", "last.ckpt")]
    assert epochs == [2, 3]


@pytest.mark.slow
def test_without_validation_positives_the_newest_epoch_is_kept(sdpl, config, tmp_path, monkeypatch):
    monkeypatch.setattr(loop._Run, "_validate", lambda self, t: float("nan"))
    assert sdpl("train", config(), "--out", tmp_path / "run").exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["resume"]["epoch"] == 2


@pytest.mark.slow
def test_the_last_epoch_is_kept_where_validation_cannot_choose(sdpl, config, tmp_path):
    """6 held-out scenes; what they know is too little for a mAP to within 5 points."""
    result = sdpl("train", config(), "--out", tmp_path / "run")
    assert "its mAP may be off by" in result.stderr
    assert "too much to choose an epoch by; the last is kept" in result.stderr
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["resume"]["epoch"] == 2
    told = sdpl("train", config(train={"keep": "last"}), "--out", tmp_path / "last")
    assert "may be off" not in told.stderr
    assert load_checkpoint(tmp_path / "last" / "model.ckpt")["resume"]["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 3)])
def test_best_and_last_are_kept_as_configured(config, tmp_path, validated, keep, kept):
    validated(10.0, 90.0, 50.0)
    settings = read_config(config(train={"epochs": 3, "keep": keep}))
    path = loop.train(settings, tmp_path / "run", best_too=True)
    assert load_checkpoint(path)["resume"]["epoch"] == kept
    assert load_checkpoint(tmp_path / "run" / "best.ckpt")["resume"]["epoch"] == 2
