"""Exporting as a whole: the proof decides, and nothing that existed is lost."""

import json
import shutil

import numpy as np
import pytest

import sdpl.export.build as build
from sdpl.bundle import Bundle
from sdpl.runtime import Recognizer
from sdpl.train.checkpoint import load_checkpoint, restore_model


def content(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_bundle_gives_pytorch_s_scores_on_other_images(checkpoint, bundle, scenes):
    _, model = restore_model(load_checkpoint(checkpoint))
    with Recognizer.open(bundle) as recognizer:
        images = np.stack([recognizer.preprocess(p) for p in sorted((scenes / "test").iterdir())])
        np.testing.assert_allclose(recognizer.scores(images), model.scores(images), atol=1e-5)


def test_says_what_was_proved(sdpl, checkpoint, tmp_path):
    result = sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl")
    assert result.exit_code == 0
    assert "verified on 6 images: scores differ by at most" in result.stdout
    images, scores = Bundle.open(tmp_path / "m.sdpl").proof()
    assert (images.shape, scores.shape) == ((6, 64, 64, 3), (6, 10))


def test_images_of_the_user_are_taken_for_the_proof(sdpl, checkpoint, scenes, tmp_path):
    assert sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl", "--images", scenes / "test").exit_code == 0
    assert Bundle.open(tmp_path / "m.sdpl").manifest.targets["cpu:fp32"].verification.images == 8


def test_default_name_is_beside_the_checkpoint(sdpl, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "a.ckpt")
    assert sdpl("export", tmp_path / "a.ckpt").exit_code == 0
    assert Bundle.open(tmp_path / "a.sdpl").manifest.categories[0] == "zero"


def test_a_wrong_graph_fails_and_the_old_bundle_stays(sdpl, fails, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "m.sdpl"
    assert sdpl("export", checkpoint, "--out", out).exit_code == 0
    before = content(out)
    right = build.fold

    def wrong(model):
        head = right(model)
        head.t.neg_()
        return head

    monkeypatch.setattr(build, "fold", wrong)
    assert "cpu:fp32 does not give PyTorch's answers" in fails("export", checkpoint, "--out", out)
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.sdpl"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_the_old_bundle(sdpl, checkpoint, tmp_path, monkeypatch, failure):
    out = tmp_path / "m.sdpl"
    assert sdpl("export", checkpoint, "--out", out).exit_code == 0
    before = content(out)

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(build, "write_manifest", fail)
    result = sdpl("export", checkpoint, "--out", out)
    assert result.exit_code != 0
    if isinstance(failure, OSError):
        assert f"cannot write {out}: No space left on device" in result.stderr
    assert content(out) == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.sdpl"]


def test_a_folder_of_the_user_is_never_replaced(fails, checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "exists and was not made by sdpl" in fails("export", checkpoint, "--out", tmp_path / "photos")


def test_a_missing_checkpoint_and_a_bad_image(fails, checkpoint, tmp_path):
    assert "no such checkpoint" in fails("export", tmp_path / "gone.ckpt")
    assert "no such image" in fails("export", checkpoint, "--out", tmp_path / "m", "--images", tmp_path / "x.jpg")


def test_manifest_is_readable_by_anyone(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["targets"]["cpu:fp32"]["verification"]["tolerance"] == 1e-4
