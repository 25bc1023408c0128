"""`sdpl-train --report`: the page of a whole run, also when it was stopped and went on."""

import re

import numpy as np
import pytest
import torch

from sdpl.data.images import LabelledImages
from sdpl.evaluate.training import Epoch
from sdpl.train import keeping, loop
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.keeping import kept_epoch, too_coarse, why_kept
from sdpl.train.log import read_csv
from sdpl.train.snapshots import opened, shown_cases, snapshot_epochs


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


def test_the_reason_names_the_bound_and_the_positives():
    assert why_kept("last", split(5)) == "train.keep: last; the weights of the last epoch are kept."
    assert too_coarse(split(5)) in why_kept("best", split(5))
    assert "at most 5.0 points." in why_kept("best", split(5))
    text = why_kept("best", split(400))
    assert "highest validation mAP" in text
    assert "400 positives: its mAP may be off by 2.5 points, within the bound of 5.0 points" in text


def test_a_handful_of_snapshots_whatever_the_length():
    assert snapshot_epochs(1) == {0, 1}
    assert {0, 1, 100} < snapshot_epochs(100)
    assert len(snapshot_epochs(1000)) == 5


def test_cases_are_known_positives_of_images_spread_over_the_split():
    data = split(100, categories=5)
    cases = shown_cases(data)
    assert [row for row, _ in cases] == [0, 0, 33, 33, 66, 66, 99, 99]
    assert all(data.labels[case] > 0 for case in cases)
    assert shown_cases(split(0)) == []
    taken = {"epoch": 1, "cases": [[0, 0], [9999, 0]], "maps": torch.ones(2, 2, 3)}
    (seen,) = opened([taken], data)
    assert (seen.cases, seen.maps.shape) == (((0, 0),), (1, 2, 3))


def test_a_log_that_is_no_log_is_no_curve(tmp_path):
    assert read_csv(tmp_path / "log.csv") == []
    (tmp_path / "log.csv").write_text("time,message\n1,hello\n")
    assert read_csv(tmp_path / "log.csv") == []
    (tmp_path / "log.csv").write_text("epoch,lr,train_loss,val_mAP\n1,0.1,2,nan\n")
    (epoch,) = read_csv(tmp_path / "log.csv")
    assert (epoch.epoch, epoch.lr, epoch.loss) == (1, 0.1, 2.0)
    assert isinstance(epoch, Epoch)


@pytest.mark.slow
def test_the_page_of_a_run_that_was_stopped_shows_all_epochs(sdpl, fails, config, scenes, tmp_path, monkeypatch):
    path = config(train={"epochs": 3})
    original = loop._Run.run_epoch

    def stop_after_two(self):
        if self.epoch == 2:
            raise KeyboardInterrupt
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "run_epoch", stop_after_two)
        assert sdpl("train", path, "--out", tmp_path / "run", "--report", tmp_path / "r.html").exit_code == 130
    assert not (tmp_path / "r.html").exists()
    result = sdpl("train", path, "--out", tmp_path / "run", "--resume", "--report", tmp_path / "r.html")
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'r.html'}"
    text = (tmp_path / "r.html").read_text()
    assert "3 of 3 epochs, 18 training and 6 validation images, 10 categories" in text
    assert "too much to choose an epoch by; the last is kept" in text
    assert "<b>3</b><span>the kept epoch, of 3</span>" in text
    assert re.findall(r"after epoch (\d)", text)[:4] == ["0", "1", "2", "3"]  # not lost with the stop
    assert len(text) < 1_000_000
    before = load_checkpoint(tmp_path / "run" / "last.ckpt")["resume"]["snapshots"]
    again = sdpl("train", path, "--out", tmp_path / "run", "--resume", "--report", tmp_path / "again.html")
    assert again.exit_code == 0  # of a run that is at its end: only the page
    assert (tmp_path / "again.html").read_text()[:-200] == text[:-200]
    assert len(before) == 4
    assert "is a folder; name a file in it" in fails("train", path, "--out", tmp_path / "x", "--report", tmp_path)
    evaluated = tmp_path / "e.html"
    words = ("eval", tmp_path / "run" / "model.ckpt", scenes / "annotations" / "instances_test.json")
    assert sdpl(*words, "--report", evaluated, "--worst", "0").exit_code == 0
    assert "How it was trained" in evaluated.read_text()


def test_an_epoch_is_chosen_where_the_bound_allows_it(monkeypatch):
    monkeypatch.setattr(keeping, "MAX_AP_ERROR", 1.0)
    assert too_coarse(split(1)) is None
