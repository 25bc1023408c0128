"""Engines added to a bundle from its own graphs, as another GPU needs them: no checkpoint, no PyTorch."""

import shutil

import pytest
from loading import loaded_by

from sdpl.bundle import Bundle
from sdpl.manifest import CACHE
from sdpl.runtime import Recognizer

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(gpu_bundle, tmp_path):
    return shutil.copytree(gpu_bundle, tmp_path / "m.sdpl")


def test_an_engine_for_another_gpu_is_added(sdpl, copy):
    (copy / CACHE).mkdir()
    (copy / CACHE / "compiled").write_text("kept")
    before = Bundle.open(copy).manifest
    result = sdpl("export", copy, "--target", "rtx:sm89:fp16", "--batch", "1:2:4")
    assert result.exit_code == 0, result.output
    assert "rtx:sm89:fp16: built, not run; 6 images: scores differ" in result.stdout
    bundle = Bundle.open(copy)
    added = bundle.manifest.targets["rtx:sm89:fp16"]
    assert (added.compute_capability, added.profile.max) == ("89", 4)
    assert bundle.manifest.targets | {"rtx:sm89:fp16": added} == before.targets | {"rtx:sm89:fp16": added}
    assert all(bundle.file(name) for name in bundle.manifest.files)
    assert (copy / CACHE / "compiled").read_text() == "kept"
    with Recognizer.open(copy, "cpu:fp32") as recognizer:
        assert recognizer.categories == before.categories


def test_the_same_engine_is_built_anew(sdpl, copy):
    assert sdpl("export", copy, "--target", "rtx:sm86:fp16", "--batch", "1:1:1").exit_code == 0
    assert Bundle.open(copy).manifest.targets["rtx:sm86:fp16"].profile.max == 1


def test_no_pytorch_is_loaded(copy):
    words = ["export", str(copy), "--target", "rtx:sm89:fp16"]
    loaded = loaded_by(f"from sdpl.cli import main\nmain({words!r}, standalone_mode=False)")
    assert "tensorrt_rtx" in loaded
    assert "torch" not in loaded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "rtx:sm86:bf16"], "in a precision whose graph it has (encoder.fp16.onnx); export the checkpoint"),
        (["--target", "cpu:int8"], "a bundle is enough for rtx and tensorrt engines"),
        (["--target", "tensorrt:fp16"], "tensorrt is not installed"),
        (["--target", "rtx:sm89:fp16", "--eval", "x.json"], "--eval needs a checkpoint"),
        (["--target", "rtx:sm89:fp16", "--head", "separable"], "--head needs a checkpoint"),
        ([], "is a bundle: name the engine to add with --target, such as rtx:sm89:fp16"),
        (["--target", "rtx:sm89:fp16", "--max-score-diff", "0"], "does not give PyTorch's answers"),
    ],
)
def test_what_a_bundle_is_not_enough_for(fails, copy, words, message):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert message in fails("export", copy, *words)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_adding_an_engine_deletes_no_file_of_the_user(fails, copy):
    (copy / "notes.txt").write_text("mine")
    assert "holds notes.txt, which no export wrote" in fails("export", copy, "--target", "rtx:sm89:fp16")
    assert (copy / "notes.txt").read_text() == "mine"
