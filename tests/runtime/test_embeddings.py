"""Embeddings: PyTorch's, on every engine of a CPU; what has none is refused in one line."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file

from sdpl.bundle import PROOF, Bundle, sha256
from sdpl.errors import UserError
from sdpl.runtime import Recognizer
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.model import PartialLabelModel

LIMITS = {"cpu:fp32": 2e-6, "openvino:fp32": 2e-6, "cpu:int8": 0.05}  # of any number of a vector of unit length


@pytest.fixture(scope="module")
def pytorch(checkpoint, images):
    """Unit length, [N,E]: the trunk's map through the trained layers, its mean over the locations."""
    _, model = restore_model(load_checkpoint(checkpoint))
    head = model.decoupling
    with torch.no_grad():
        f = model.encoder.locations(torch.from_numpy(images))  # [N,L,D]
        e = head.to_embedding(head.image_projection(f)).mean(dim=1)  # [N,E]
    return torch.nn.functional.normalize(e, dim=1).numpy()


@pytest.fixture
def without_embeddings(bundle, tmp_path):
    """The bundle as an older sdpl would have written it."""
    old = shutil.copytree(bundle, tmp_path / "old.sdpl")
    model = onnx.load(old / "model.onnx")
    del model.graph.output[2]
    onnx.save(model, old / "model.onnx")
    proof = {name: array for name, array in load_file(old / PROOF).items() if name != "embeddings"}
    save_file(proof, old / PROOF)
    manifest = json.loads((old / "manifest.json").read_text())
    for target in manifest["targets"].values():
        target["verification"] = {k: v for k, v in target["verification"].items() if not k.startswith("embedding")}
    del manifest["embedding_size"]
    write(old, manifest | {"format_version": 3}, "model.onnx", PROOF)
    return old


def write(bundle, manifest, *changed):
    """Its manifest, with the hashes of files that were changed."""
    for name in changed:
        manifest["files"][name] = {"size": (bundle / name).stat().st_size, "sha256": sha256(bundle / name)}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("target", LIMITS)
def test_they_are_pytorch_s(cpu_bundle, images, pytorch, target):
    with Recognizer.open(cpu_bundle, target) as recognizer:
        scores, embeddings = recognizer.embeddings(images)
        assert embeddings.shape == (len(images), recognizer.embedding_size)
        np.testing.assert_allclose(scores, recognizer.scores(images), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeddings, pytorch, atol=LIMITS[target])
    others = [np.abs(a - b).max() for i, a in enumerate(pytorch) for b in pytorch[:i]]
    assert min(others) > 3 * LIMITS["cpu:fp32"]  # the images can be told apart


def test_one_image_a_list_and_an_iterator(bundle, scenes):
    photos = sorted((scenes / "train").iterdir())[:3]
    with Recognizer.open(bundle) as recognizer:
        expected = recognizer.embeddings(np.stack([recognizer.preprocess(photo) for photo in photos]))[1]
        np.testing.assert_allclose(recognizer.embed(photos[0]), expected[0], atol=1e-6)
        np.testing.assert_allclose(recognizer.embed(photos), expected, atol=1e-6)
        stream = recognizer.embed(iter(photos), batch_size=2)
        np.testing.assert_allclose(next(stream), expected[0], atol=1e-6)
        assert recognizer.embed([]).shape == (0, recognizer.embedding_size)
        assert recognizer.embeddings(np.zeros((0, 64, 64, 3), np.uint8))[1].shape == (0, recognizer.embedding_size)
        with pytest.raises(UserError, match="no such image"):
            recognizer.embed(["gone.jpg"])
        with pytest.raises(ValueError, match="got both"):
            next(recognizer.stream(photos, with_attention=True, with_embedding=True))


def test_an_older_bundle_scores_and_says_how_to_get_embeddings(without_embeddings, bundle, images, fails, scenes):
    with Recognizer.open(without_embeddings) as old, Recognizer.open(bundle) as new:
        np.testing.assert_array_equal(old.scores(images), new.scores(images))
        with pytest.raises(
            UserError, match=r"has no embeddings: an older sdpl exported it. Export the checkpoint again"
        ):
            old.embed(scenes / "train" / "000000.jpg")
    out = without_embeddings.parent / "out"
    words = ("score", without_embeddings, scenes / "train", "--out", out, "--embeddings")
    assert "old.sdpl has no embeddings: an older sdpl exported it. Export the checkpoint again." in fails(*words)
    assert not list(out.glob("*.parquet"))


def test_an_older_bundle_is_verified_and_keeps_its_format_s_promise(without_embeddings, sdpl):
    assert sdpl("verify", without_embeddings).exit_code == 0
    bundle = Bundle.open(without_embeddings)
    assert bundle.manifest.format_version == 3
    assert bundle.proof()[1].embeddings is None


def test_the_proof_compares_them(bundle, tmp_path, sdpl, fails):
    for verification in (target.proof() for target in Bundle.open(bundle).manifest.targets.values()):
        assert verification.embedding_limit < verification.embedding_cosine <= 1.000001
    copied = shutil.copytree(bundle, tmp_path / "copied.sdpl")
    assert "embeddings' cosine 1.000000 or more" in sdpl("verify", copied).output
    proof = load_file(copied / PROOF)
    save_file(proof | {"embeddings": proof["embeddings"][:, ::-1].copy()}, copied / PROOF)
    write(copied, json.loads((copied / "manifest.json").read_text()), PROOF)
    assert "an embedding has cosine" in fails("verify", copied)
    save_file(proof | {"embeddings": proof["embeddings"][:, :3].copy()}, copied / PROOF)
    write(copied, json.loads((copied / "manifest.json").read_text()), PROOF)
    assert "has no embeddings of 16 numbers" in fails("verify", copied)


def test_an_export_with_wrong_ones_is_refused(checkpoint, tmp_path, fails, monkeypatch):
    right = PartialLabelModel.embeddings

    def wrong(self, images, t):
        scores, embeddings = right(self, images, t)
        return scores, np.roll(embeddings, 1, axis=1)

    monkeypatch.setattr(PartialLabelModel, "embeddings", wrong)
    message = fails("export", checkpoint, "--out", tmp_path / "wrong.sdpl", "--target", "cpu:fp32")
    assert "an embedding has cosine" in message
    assert not (tmp_path / "wrong.sdpl").exists()
