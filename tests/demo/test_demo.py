"""The shipped CLIP knows digits it never saw, and the demo runs from end to end (here on a few scenes)."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

import sdpl.demo.run as demo
from sdpl.bundle import Bundle
from sdpl.demo import tiny_clip
from sdpl.demo.scenes import CATEGORIES, SCENE_SIDE, compose, digit_instances
from sdpl.files import _umask
from sdpl.train.config import check_config
from sdpl.train.model import new_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The demo's model before training."""
    weights = tiny_clip.unpack_weights(tmp_path_factory.mktemp("weights") / "tiny_clip.safetensors")
    values = yaml.safe_load(demo.CONFIG.read_text())
    values["model"] |= {"backbone_config": str(tiny_clip.CONFIG), "weights": str(weights)}
    return new_model(check_config(values).model, CATEGORIES).eval()


def test_weights_are_small_enough_to_ship():
    assert tiny_clip.WEIGHTS.stat().st_size < 8_000_000


@pytest.mark.slow
def test_zero_shot_on_digits_that_pretraining_never_saw(model):
    rng = np.random.RandomState(5)
    scenes = [compose(rng, *digit_instances("test"), most=1) for _ in range(60)]
    images = torch.from_numpy(np.stack([np.asarray(scene.image) for scene in scenes])).permute(0, 3, 1, 2)
    texts = model.encoder.encode_sentences([f"a photo of {name}." for name in CATEGORIES])
    with torch.no_grad():
        features = model.encoder.clip.encode_image(tiny_clip.normalise(images), normalize=True)
    right = (features @ texts.T).argmax(1) == torch.tensor([scene.digits[0] for scene in scenes])
    assert right.float().mean() > 0.8  # chance: 0.1


def test_word_vectors_of_the_digits_differ(model):
    words = torch.nn.functional.normalize(model.words, dim=1)
    assert (words @ words.T - torch.eye(10)).max() < 0.8


def test_cells_inside_a_box():
    inside = demo._cells_inside([(0, 0, SCENE_SIDE // 2, SCENE_SIDE)], (6, 6))
    np.testing.assert_array_equal(inside, np.tile([1, 1, 1, 0, 0, 0], (6, 1)))


def test_a_difference_beyond_the_proof_is_explained(bundle):
    proof = Bundle.open(bundle).manifest.targets["cpu:fp32"].proof()
    assert demo.beyond_proof({"cpu:fp32": proof}, {"cpu:fp32": proof.tolerance}) == []
    (line,) = demo.beyond_proof({"cpu:fp32": proof}, {"cpu:fp32": 2 * proof.tolerance})
    assert line.startswith("cpu:fp32: its proof holds for the 6 held-out images of the checkpoint; on more images")


def test_the_shipped_weights_can_be_read_by_others(tmp_path):
    path = tiny_clip.unpack_weights(tmp_path / "tiny_clip.safetensors")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


@pytest.mark.parametrize(("program", "status"), [("import time; time.sleep(60)", -signal.SIGTERM), ("", 0)])
def test_a_step_that_does_not_end_with_the_demo_is_ended(monkeypatch, program, status):
    monkeypatch.setattr(demo, "TOLD_S", 0.2 if status else 60)
    process = subprocess.Popen([sys.executable, "-c", program])
    demo._end(process)
    assert process.returncode == status


@pytest.mark.slow
def test_the_whole_demo_on_a_few_scenes(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "TRAIN_SCENES", 24)
    monkeypatch.setattr(demo, "TEST_SCENES", 16)
    monkeypatch.setattr(demo, "SECONDS", 0.05)
    out = tmp_path / "demo"
    demo.run(out)
    rows = {row[0]: row[1:] for row in json.loads((out / "summary.json").read_text())["rows"]}
    assert rows["mAP (%)"][0] == rows["mAP (%)"][1]
    assert float(rows["largest score difference"][1]) <= 1e-4 < float(rows["largest score difference"][2])
    assert [rows["limit of the proof"][i] for i in (1, 2)] == ["1.0e-04", "1.5e-01"]
    assert len(list((out / "attention").glob("*.png"))) == demo.PICTURES
    assert all((out / name).stat().st_size > 1000 for name in ("ap.png", "bench.png", "report.html"))
    printed = capfd.readouterr()
    assert "$ sdpl export" in printed.out
    assert "cpu:int8: verified; " in printed.out
    assert "built, not run" in printed.out
    assert "epoch  12/12" in printed.err
    demo._command(Console(), "train", out / "config.yaml", "--out", out / "run", "--resume")  # as a second run does
    assert "epoch  " not in capfd.readouterr().err  # no line of an epoch
