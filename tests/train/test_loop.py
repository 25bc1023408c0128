"""Training as a whole: it learns, it resumes exactly, it measures on what it has not trained on."""

import csv
import itertools
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import sdpl.train.features.sources as maps
import sdpl.train.loop as loop
from sdpl.bundle import Bundle
from sdpl.data.formats import read_labels
from sdpl.preprocess import preprocess
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.config import TrainConfig
from sdpl.train.config_files import read_config
from sdpl.train.loop import learning_rate, load_data

pytestmark = pytest.mark.slow


def log(folder):
    with open(folder / "log.csv") as stream:
        return list(csv.DictReader(stream))


def test_writes_checkpoints_log_and_configuration(run_folder):
    assert sorted(p.name for p in run_folder.iterdir()) == ["config.yaml", "last.ckpt", "log.csv", "model.ckpt"]
    rows = log(run_folder)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[0]["lr"]) == 0.0005
    assert all(0 <= float(row["val_mAP"]) <= 100 for row in rows)
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

    def stop_after_two(self):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(self.epoch)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "run_epoch", stop_after_two)
        stopped = sdpl("train", path, "--out", tmp_path / "parts")
    assert stopped.exit_code == 130
    assert "interrupted; add --resume" in stopped.stderr
    torch.manual_seed(99)
    assert sdpl("train", path, "--out", tmp_path / "parts", "--resume").exit_code == 0
    for name in ("last.ckpt", "model.ckpt"):
        whole, parts = (state(tmp_path / run / name) for run in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert [r["train_loss"] for r in log(tmp_path / "whole")] == [r["train_loss"] for r in log(tmp_path / "parts")]


EVERYTHING = {  # what an exact resume has to carry
    "data": {"flip": True, "min_crop": 0.5},
    "model": {"learn_temperature": True},
    "train": {
        "epochs": 3,
        "batch_size": 5,
        "accumulate": 2,
        "ema_decay": 0.9,
        "fit_thresholds": True,
        "checkpoint_steps": 1,
        "tensorboard": True,
    },
}
KILLED = """
import os, signal, sys
from sdpl.cli import main
from sdpl.train.step import Learner
step = Learner.step
def killed_at_step_6(self, *rest):
    if self.steps == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *rest)
Learner.step = killed_at_step_6
main(sys.argv[1:])
"""


def test_a_run_that_was_killed_inside_an_epoch_ends_with_the_same_bits(sdpl, config, tmp_path):
    path = config(**EVERYTHING)
    assert sdpl("train", path, "--out", tmp_path / "whole").exit_code == 0
    words = [sys.executable, "-c", KILLED, "train", path, "--out", tmp_path / "parts"]
    assert subprocess.run(words, capture_output=True).returncode == -9
    stopped = load_checkpoint(tmp_path / "parts" / "last.ckpt")["resume"]
    assert (stopped["epoch"], stopped["step"]) == (1, 2)  # 18 images, 4 steps an epoch
    assert sdpl("train", path, "--out", tmp_path / "parts", "--resume").exit_code == 0
    for name in ("last.ckpt", "model.ckpt"):
        whole, parts = (load_checkpoint(tmp_path / run / name) for run in ("whole", "parts"))
        for kind in ("state", "learner"):
            a, b = (flat(c[kind] if kind == "state" else c["resume"]["learner"]) for c in (whole, parts))
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key] for key in a)
        assert whole["thresholds"] == parts["thresholds"]
    rows = [[{**row, "seconds": 0} for row in log(tmp_path / run)] for run in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert list((tmp_path / "parts" / "tensorboard").iterdir())


def flat(value, prefix=""):
    """{"a.b.0": leaf} of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{prefix}.{name}").items()}


def test_the_exported_weights_are_the_averaged_ones(sdpl, config, tmp_path):
    for decay in (0.0, 0.9):
        path = config(train={"ema_decay": decay, "epochs": 1})
        assert sdpl("train", path, "--out", tmp_path / str(decay)).exit_code == 0
    plain, averaged = (load_checkpoint(tmp_path / str(decay) / "last.ckpt") for decay in (0.0, 0.9))
    name = "prompts.context"
    assert not torch.equal(plain["state"][name], averaged["state"][name])
    trained = averaged["resume"]["learner"]["trained"]
    assert any(torch.equal(plain["state"][name], tensor) for tensor in trained)


def test_fitted_thresholds_reach_the_bundle_and_the_evaluation(sdpl, config, scenes, tmp_path):
    path = config(train={"fit_thresholds": True, "epochs": 1})
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    checkpoint = tmp_path / "run" / "model.ckpt"
    thresholds = load_checkpoint(checkpoint)["thresholds"]
    assert len(set(thresholds)) > 1
    assert sdpl("export", checkpoint).exit_code == 0
    assert list(Bundle.open(tmp_path / "run" / "model.sdpl").manifest.thresholds) == thresholds
    annotations = scenes / "annotations" / "instances_test.json"
    for name, words in (("own", ()), ("half", ("--threshold", "0.5"))):
        assert sdpl("eval", checkpoint, annotations, "--json", tmp_path / name, *words).exit_code == 0
    own, half = (json.loads((tmp_path / name).read_text()) for name in ("own", "half"))
    assert own["mAP"] == half["mAP"]
    assert own["f1"] != half["f1"]


@pytest.fixture
def small_files():
    """small_files(bytes): no file may grow beyond this, as on a full disk; undone afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_a_checkpoint(sdpl, fails, config, tmp_path, small_files):
    path, out = config(train={"checkpoint_steps": 1, "epochs": 2}), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_validate", lambda self, t: (_ for _ in ()).throw(KeyboardInterrupt))
        assert "add --resume to go on from the last checkpoint" in fails("train", path, "--out", out, status=130)
    before = load_checkpoint(out / "last.ckpt")["resume"]["step"]
    small_files(1_000_000)
    message = fails("train", path, "--out", out, "--resume")
    assert f"cannot write {out}/model.ckpt" in message
    small_files(-1)
    assert load_checkpoint(out / "last.ckpt")["resume"]["step"] == before == 2
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "last.ckpt"]
    assert sdpl("train", path, "--out", out, "--resume").exit_code == 0


def test_a_disk_that_is_full_while_caching(sdpl, fails, config, tmp_path, small_files):
    path = config(data={"cache": "cache"})
    small_files(30_000)  # 14 of 24 images
    message = fails("train", path, "--out", tmp_path / "run")
    assert re.search(r"cannot write .*\.maps: File too large; .* Free space", message)
    small_files(-1)
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0


def test_from_the_cache_comes_the_same_training(sdpl, config, tmp_path, monkeypatch):
    for name, data in (("plain", {}), ("cached", {"cache": "cache"})):
        assert sdpl("train", config(data=data), "--out", tmp_path / name).exit_code == 0
    plain, cached = (state(tmp_path / name / "last.ckpt") for name in ("plain", "cached"))
    for key, value in plain.items():
        torch.testing.assert_close(cached[key], value, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(maps.Tower, "__call__", lambda *_: pytest.fail("the tower was asked again"))
    assert sdpl("train", config(data={"cache": "cache", "mask_seed": 5}), "--out", tmp_path / "again").exit_code == 0


def test_a_cache_of_another_model_is_not_used(sdpl, config, tmp_path):
    data = {"cache": "cache"}
    assert sdpl("train", config(data=data, train={"epochs": 1}), "--out", tmp_path / "a").exit_code == 0
    changed = config(data=data, model={"image_size": 96}, train={"epochs": 1})
    result = sdpl("train", changed, "--out", tmp_path / "b")
    assert result.exit_code == 0
    assert "is not used: it was made with other image size, shape." in result.stderr


def test_augmented_views_come_from_the_cache_by_turns(sdpl, config, tmp_path):
    data = {"cache": "cache", "flip": True, "cache_views": 2}
    assert sdpl("train", config(data=data, train={"epochs": 3}), "--out", tmp_path / "run").exit_code == 0
    views = [json.loads(path.read_text())["view"] for path in (tmp_path / "cache").glob("*.json")]
    assert sorted(view.split(", ")[-1] for view in views) == ["plain", "view 0", "view 1"]


def test_two_processes_learn_and_measure_what_one_does(sdpl, config, tmp_path):
    """18 images in batches of 17: the last batch leaves one process without an image."""
    path = config(train={"batch_size": 17, "epochs": 2, "lr": 0.05})
    assert sdpl("train", path, "--out", tmp_path / "one").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "-m", "sdpl", "train", path, "--out", tmp_path / "two"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one, two = (log(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), rel=1e-5)
        assert float(a["val_mAP"]) == pytest.approx(float(b["val_mAP"]))
    weights = [state(tmp_path / name / "last.ckpt") for name in ("one", "two")]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-6)


def test_a_lower_precision_of_the_tower_trains_too(sdpl, fails, config, tmp_path):
    for precision in ("fp32", "bf16"):
        path = config(train={"precision": precision, "epochs": 1})
        assert sdpl("train", path, "--out", tmp_path / precision).exit_code == 0
    losses = [float(log(tmp_path / precision)[0]["train_loss"]) for precision in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    message = fails("train", config(train={"precision": "fp16"}), "--out", tmp_path / "fp16")
    assert "train.precision = 'fp16' needs a GPU, this run is on cpu: take 'bf16' or 'fp32'" in message


def test_a_run_is_never_overwritten_by_accident(fails, config, tmp_path, run_folder):
    copy = shutil.copytree(run_folder, tmp_path / "copy")
    assert "already holds a run: add --resume" in fails("train", config(), "--out", copy)
    message = fails("train", config(train={"epochs": 1, "lr": 0.5}), "--out", copy, "--resume")
    assert "train.epochs: 2 -> 1; train.lr: 0.002 -> 0.5" in message
    assert "leave out --resume to begin one" in fails("train", config(), "--out", tmp_path / "new", "--resume")


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
    assert "the checkpoint that is kept, is missing" in fails("train", path, "--out", tmp_path / "run", "--resume")


def test_a_stop_before_the_first_epoch_does_not_promise_a_resume(fails, config, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop._Run, "run_epoch", stop)
    message = fails("train", config(), "--out", tmp_path / "run", status=130)
    assert message == "error: interrupted; no epoch was finished."


def test_an_unwritable_folder_is_named(fails, config, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails("train", config(), "--out", tmp_path / "file" / "run")


def test_validation_images_are_not_trained_on_and_labels_are_masked_first(config, scenes):
    settings = read_config(config(data={"known_proportion": 0.5}))
    train, val = load_data(settings)
    assert not set(train.images) & set(val.images)
    assert (len(train), len(val)) == (18, 6)
    full = dict(zip(*(lambda d: (d.images, d.labels))(read_labels(settings.data.train.annotations)), strict=True))
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


@pytest.mark.parametrize("device", ["cuda:7", "xpu"])
def test_a_device_that_is_not_here_is_named(fails, config, tmp_path, device):
    message = fails("train", config(train={"device": device}), "--out", tmp_path / "run")
    assert f"train.device = '{device}' cannot be used" in message
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(fails, config, tmp_path):
    message = fails("train", config(train={"lr": 1e30, "warmup_lr": 1e30, "epochs": 4}), "--out", tmp_path / "run")
    assert re.search(
        r"the loss is nan in epoch \d+, step \d+ \(images \d+\.jpg, .* and 5 more\): "
        r"the text features are not finite: lower train\.lr, or check model\.weights\.",
        message,
    )
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


@pytest.fixture
def damaged_in_epoch_2(scenes, tmp_path, monkeypatch):
    """Scenes of which a training and a validation image are truncated after the first epoch; the change of config."""
    moved = shutil.copytree(scenes, tmp_path / "scenes")
    original = loop._Run.run_epoch

    def damage(self):
        if self.epoch == 1:
            for data in (self.train_data, self.val_data):
                data.images[0].write_bytes(data.images[0].read_bytes()[:1000])
        return original(self)

    monkeypatch.setattr(loop._Run, "run_epoch", damage)
    return {"train": {"annotations": str(moved / "annotations" / "instances_train.json")}}


def test_an_image_that_becomes_unreadable_stops_the_run_and_is_named(fails, config, tmp_path, damaged_in_epoch_2):
    message = fails("train", config(data=damaged_in_epoch_2), "--out", tmp_path / "run")
    assert re.search(
        r"scenes/train/\d+\.jpg: is damaged or truncated .*--resume.* or set data.unreadable: skip", message
    )
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["resume"]["epoch"] == 1


def test_unreadable_images_are_skipped_from_a_cache_too(sdpl, fails, config, scenes, tmp_path):
    moved = shutil.copytree(scenes, tmp_path / "scenes")
    (moved / "train" / "000003.jpg").write_bytes(b"no image")  # one that is trained on
    data = {"train": {"annotations": str(moved / "annotations" / "instances_train.json")}, "cache": "cache"}
    assert "000003.jpg: is not an image" in fails("train", config(data=data), "--out", tmp_path / "stop")
    path = config(data={**data, "unreadable": "skip"})
    for out in ("filling", "filled"):
        result = sdpl("train", path, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert [row["unreadable"] for row in log(tmp_path / out)] == ["1", "1"]
        assert result.stderr.count("skipped: ") == 1
    message = fails("train", config(data=data), "--out", tmp_path / "stop")
    assert re.search(r"000003\.jpg: could not be read when the cache was filled\. .*data\.unreadable: skip", message)


def test_unreadable_images_are_skipped_named_and_counted(sdpl, config, tmp_path, damaged_in_epoch_2):
    path = config(data={**damaged_in_epoch_2, "unreadable": "skip"}, train={"epochs": 3})
    result = sdpl("train", path, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert [row["unreadable"] for row in log(tmp_path / "run")] == ["0", "2", "2"]
    text = result.stderr.replace("\n", "")
    assert text.count("skipped: ") == 2
    assert "2 unreadable images skipped" in text


def test_a_table_trains_with_the_categories_and_order_that_are_named(sdpl, config, scenes, tmp_path):
    rows = [f"{i:06d}.jpg,{'one|two' if i % 2 else 'three'},{'three' if i % 2 else 'two'}" for i in range(24)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,positives,negatives", *rows]))
    table = {"annotations": "labels.csv", "images": str(scenes / "train")}
    names = ["three", "two", "one"]
    path = config(data={"train": table, "val": table, "categories": names}, train={"epochs": 1})
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    assert load_checkpoint(tmp_path / "run" / "model.ckpt")["categories"] == names
    resumed = sdpl("train", path, "--out", tmp_path / "run", "--resume")
    assert resumed.exit_code == 0, resumed.output
    again = sdpl("train", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output


@pytest.mark.parametrize(("spread", "expected"), [(0.4, 0.4), (1.5, 1.5), (None, None)])
def test_training_starts_with_the_configured_sharpness(sdpl, config, tmp_path, spread, expected):
    path = config(
        model={"attention_spread": spread}, train={"epochs": 1, "lr": 1e-12, "warmup_lr": 1e-12, "weight_decay": 0}
    )
    assert sdpl("train", path, "--out", tmp_path / "run").exit_code == 0
    settings, model = restore_model(load_checkpoint(tmp_path / "run" / "last.ckpt"))
    data, _ = load_data(settings)
    images = np.stack([preprocess(image, 64) for image in data.images])
    with torch.no_grad():
        measured = model.decoupling.spread(model.encoder.locations(torch.from_numpy(images)), model.words)
    if expected is None:
        assert 0 < measured < 0.1  # as PyTorch draws it
    else:
        assert measured == pytest.approx(expected, rel=1e-3)


def test_a_second_training_into_the_same_folder_is_refused(fails, config, tmp_path):
    """A real process, and this one, which would train anew or resume; the first is then stopped, whole."""
    out = tmp_path / "run"
    words = ["train", str(config(train={"epochs": 2000, "lr": 1e-6})), "--out", str(out)]
    command = [sys.executable, "-m", "sdpl", *words]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (out / "log.csv").exists():  # it has finished an epoch and goes on
            assert first.poll() is None
            time.sleep(0.05)
        before = (out / "config.yaml").read_bytes()
        lines = [fails(*words), fails(*words, "--resume")]
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=120)
    assert (
        lines
        == [f"error: {out}: another run is writing into it; wait until it has ended, or choose another --out."] * 2
    )
    assert first.returncode == 130
    assert said.splitlines()[-1] == f"error: interrupted; add --resume to go on from the last checkpoint in {out}."
    assert (out / "config.yaml").read_bytes() == before
    assert not list(out.glob(".*"))
    assert load_checkpoint(out / "last.ckpt")["resume"]["history"]
