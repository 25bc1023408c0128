"""Exporting as a whole: the proof decides, and nothing that existed is lost."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import sdpl.export.artifacts as artifacts
import sdpl.export.build as build
import sdpl.export.proof as proof
from sdpl.bundle import Bundle
from sdpl.files import LOCK
from sdpl.runtime import Recognizer
from sdpl.runtime.backends import OnnxRuntimeCpu
from sdpl.targets import parse_targets
from sdpl.train.checkpoint import load_checkpoint, restore_model

pytestmark = pytest.mark.slow


def content(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def portable(checkpoint):
    """Words of an export that is quick: only the target for a CPU."""
    return ("export", checkpoint, "--target", "cpu:fp32")


@pytest.fixture
def old(bundle, tmp_path):
    """A bundle that is there already, `m.sdpl`."""
    return shutil.copytree(bundle, tmp_path / "m.sdpl")


def test_bundle_gives_pytorch_s_scores_on_other_images(checkpoint, bundle, scenes):
    _, model = restore_model(load_checkpoint(checkpoint))
    with Recognizer.open(bundle) as recognizer:
        images = np.stack([recognizer.preprocess(p) for p in sorted((scenes / "test").iterdir())])
        np.testing.assert_allclose(recognizer.scores(images), model.scores(images), atol=1e-5)


def test_says_what_was_proved(sdpl, checkpoint, tmp_path):
    result = sdpl("export", checkpoint, "--out", tmp_path / "m.sdpl")
    assert result.exit_code == 0
    assert "cpu:fp32: verified; 6 images: scores differ by at most" in result.stdout
    assert "rtx:sm86:fp16: built, not run; 6 images" in result.stdout
    images, expected = Bundle.open(tmp_path / "m.sdpl").proof()
    assert (images.shape, expected.scores.shape, expected.embeddings.shape) == ((6, 64, 64, 3), (6, 10), (6, 16))


def test_images_of_the_user_are_taken_for_the_proof(sdpl, portable, scenes, tmp_path):
    assert sdpl(*portable, "--out", tmp_path / "m.sdpl", "--images", scenes / "test").exit_code == 0
    assert Bundle.open(tmp_path / "m.sdpl").manifest.targets["cpu:fp32"].verification.images == 8


def test_default_name_is_beside_the_checkpoint(sdpl, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "a.ckpt")
    assert sdpl("export", tmp_path / "a.ckpt", "--target", "cpu:fp32").exit_code == 0
    assert Bundle.open(tmp_path / "a.sdpl").manifest.categories[0] == "zero"


def test_a_wrong_graph_fails_and_the_old_bundle_stays(fails, portable, old, tmp_path, monkeypatch):
    out, before = old, content(old)
    right = artifacts.fold

    def wrong(model):
        head = right(model)
        head.t.neg_()
        return head

    monkeypatch.setattr(artifacts, "fold", wrong)
    assert "cpu:fp32 does not give PyTorch's answers" in fails(*portable, "--out", out)
    assert content(out) == before
    assert {p.name for p in tmp_path.iterdir()} - {LOCK} == {"m.sdpl"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_the_old_bundle(sdpl, portable, old, tmp_path, monkeypatch, failure):
    out, before = old, content(old)

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(build, "write_manifest", fail)
    result = sdpl(*portable, "--out", out)
    assert result.exit_code != 0
    if isinstance(failure, OSError):
        assert f"cannot write {out}: No space left on device" in result.stderr
    assert content(out) == before
    assert {p.name for p in tmp_path.iterdir()} - {LOCK} == {"m.sdpl"}


def test_a_folder_of_the_user_is_never_replaced(fails, checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "exists and was not made by sdpl" in fails("export", checkpoint, "--out", tmp_path / "photos")


def test_a_missing_checkpoint_and_a_bad_image(fails, checkpoint, tmp_path):
    assert "no such checkpoint" in fails("export", tmp_path / "gone.ckpt")
    assert "no such image" in fails("export", checkpoint, "--out", tmp_path / "m", "--images", tmp_path / "x.jpg")


def test_manifest_is_readable_by_anyone(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["targets"]["cpu:fp32"]["verification"]["tolerance"] == 1e-4


def test_a_bundle_with_a_file_of_the_user_is_not_replaced(sdpl, fails, portable, bundle, tmp_path):
    out = tmp_path / "m.sdpl"
    shutil.copytree(bundle, out)
    (out / "notes.txt").write_text("mine")
    assert "holds notes.txt, which no export wrote" in fails(*portable, "--out", out)
    assert (out / "notes.txt").read_text() == "mine"
    (out / "notes.txt").rename(out / ".DS_Store")
    assert sdpl(*portable, "--out", out).exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "cpu:int8"], "--target cpu:int8: int8 needs real images to calibrate on: add --calibrate FOLDER"),
        (["--head", "separable"], "--head separable is fitted to real images: add --calibrate FOLDER"),
        (["--target", "cpu:fp23"], "--target 'cpu:fp23': did you mean 'cpu:fp32'?"),
        (["--target", "tensorrt:fp16"], "--target tensorrt:fp16: tensorrt is not installed"),
        (["--batch", "8:1:64"], "--batch '8:1:64': expected MIN:OPT:MAX"),
        (["--batch", "eight"], "--batch 'eight': expected MIN:OPT:MAX"),
        (["--calibrate", "no-such-folder"], "no-such-folder"),
        (["--max-score-diff", "0"], "cpu:fp32 does not give PyTorch's answers: scores differ by up to"),
    ],
)
def test_wrong_options_are_named_and_nothing_is_written(fails, portable, tmp_path, words, message):
    assert message in fails(*portable, "--out", tmp_path / "m.sdpl", *words)
    assert list(tmp_path.iterdir()) == []


def test_accuracy_of_every_target_is_in_the_proof(sdpl, fails, portable, scenes, tmp_path):
    out, labels = tmp_path / "m.sdpl", scenes / "annotations" / "instances_test.json"
    words = ["--target", "cpu:int8", "--calibrate", scenes / "train", "--eval", labels]
    result = sdpl(*portable, "--out", out, *words, "--max-map-drop", 100)
    assert result.exit_code == 0, result.output
    for name in ("cpu:fp32", "cpu:int8"):
        accuracy = Bundle.open(out).manifest.targets[name].verification.accuracy
        assert accuracy.images == 8
        assert {"mAP", "OF1", "CF1"} == set(accuracy.target) == set(accuracy.pytorch)
    assert "; mAP " in result.stdout
    before = content(out)

    measured = iter([50.0, 49.0])  # of PyTorch, of the first target
    right = proof.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "evaluate", lambda *a: dataclasses.replace(right(*a), mAP=next(measured)))
        assert "cpu:fp32 does not give PyTorch's answers: mAP falls by 1.00 points" in fails(
            *portable, "--out", out, *words
        )
    assert content(out) == before


def test_a_separable_head_is_exact_enough_and_says_by_how_much(sdpl, portable, scenes, tmp_path):
    words = ["--head", "separable", "--calibrate", scenes / "train", "--max-score-diff", "0.01"]
    result = sdpl(*portable, "--out", tmp_path / "m.sdpl", *words)
    assert result.exit_code == 0, result.output
    notes = Bundle.open(tmp_path / "m.sdpl").manifest.targets["cpu:fp32"].notes["separable_head"]
    assert 0 < notes["attention_moved"] <= 0.01
    assert sdpl(*portable, "--out", tmp_path / "m.sdpl", *words, "--terms", "20").exit_code == 0
    assert Bundle.open(tmp_path / "m.sdpl").manifest.targets["cpu:fp32"].notes["separable_head"]["terms"] == 20


def test_terms_belong_to_a_separable_head(fails, portable, tmp_path):
    out = ("--out", tmp_path / "m.sdpl", "--terms")
    assert "--terms 8 is for the separable head: add --head separable" in fails(*portable, *out, "8")


def test_the_proof_runs_through_the_code_that_serves(fails, checkpoint, tmp_path, monkeypatch):
    """A runtime that scores wrongly fails the export, though every graph is right; Python proves alike."""
    options = build.Options(targets=parse_targets(("cpu:fp32",)))
    record = build.export(checkpoint, tmp_path / "m.sdpl", options)["cpu:fp32"]
    assert record.verification.scored_by == "target"
    assert record.verification.environment["provider"] == "CPUExecutionProvider"
    right = OnnxRuntimeCpu.infer
    monkeypatch.setattr(OnnxRuntimeCpu, "infer", lambda *given: [0.99 * output for output in right(*given)])
    words = ("export", checkpoint, "--out", tmp_path / "wrong.sdpl", "--target", "cpu:fp32")
    assert "cpu:fp32 does not give PyTorch's answers: scores differ by up to" in fails(*words)
    assert not (tmp_path / "wrong.sdpl").exists()


def test_two_exports_at_once_leave_one_whole_bundle(checkpoint, tmp_path):
    out = tmp_path / "m.sdpl"
    words = [sys.executable, "-m", "sdpl", "export", checkpoint, "--out", out, "--target", "cpu:fp32"]
    both = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    with Recognizer.open(out) as recognizer:
        assert recognizer.scores(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 10)
    assert {p.name for p in tmp_path.iterdir()} == {"m.sdpl", LOCK}


def test_what_a_second_export_drops_is_said_and_kept_on_request(sdpl, checkpoint, portable, old, scenes):
    int8 = ("--target", "cpu:int8", "--calibrate", scenes / "test", "--keep")
    kept = sdpl("export", checkpoint, "--out", old, *int8)
    assert kept.exit_code == 0, kept.output
    assert set(Bundle.open(old).manifest.targets) == {"cpu:fp32", "cpu:int8"}
    fewer = sdpl(*portable, "--out", old)
    assert f"when all is proven, {old} has no cpu:int8; --keep exports them too" in fewer.stderr
    assert set(Bundle.open(old).manifest.targets) == {"cpu:fp32"}
