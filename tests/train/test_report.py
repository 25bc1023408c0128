"""`sdpl-train --report`: the page of a whole run, also when it was stopped and went on."""

import re

import pytest

from sdpl.evaluate.training import Epoch
from sdpl.train import loop
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.log import read_csv


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
