"""Fused pooling and sigmoid masks through the command line: exported and proved, or refused in one line."""

import json

import numpy as np
import onnx
import pytest
import torch

from sdpl.bundle import Bundle
from sdpl.errors import UserError
from sdpl.export.fold import fold
from sdpl.export.fused_head import add_fused_head
from sdpl.export.onnx import encoder_to_onnx
from sdpl.runtime import Recognizer
from sdpl.train.checkpoint import load_checkpoint, restore_model

pytestmark = pytest.mark.slow


@pytest.fixture
def trained(sdpl, config, tmp_path):
    """trained(**model) -> the checkpoint of a short run with these switches."""

    def make(**model):
        assert sdpl("train", config(model=model, train={"epochs": 1}), "--out", tmp_path / "run").exit_code == 0
        return tmp_path / "run" / "model.ckpt"

    return make


def test_fused_pooling_exports_and_gives_pytorch_s_scores(sdpl, fails, trained, tmp_path):
    checkpoint, out = trained(pooling="fused"), tmp_path / "model.sdpl"
    result = sdpl("export", checkpoint, "--out", out, "--target", "cpu:fp32")
    assert result.exit_code == 0, result.output
    opened = Bundle.open(out)
    proof = opened.manifest.targets["cpu:fp32"].verification
    assert (proof.scored_by, proof.max_score_difference < 1e-5) == ("target", True)
    _, model = restore_model(load_checkpoint(checkpoint))
    images = opened.proof()[0]
    with Recognizer.open(out, "cpu:fp32") as recognizer:
        scores, attention = recognizer.attention(images)
        with pytest.raises(UserError, match=r"has no embeddings: model.pooling = 'fused'"):
            recognizer.embeddings(images)
    expected = model.attention(images)
    np.testing.assert_allclose(scores, expected[0], atol=1e-5)
    np.testing.assert_allclose(attention, expected[1], atol=1e-5)
    assert "'fused' is not the operator that target rtx:sm86:fp16 needs" in fails(
        "export", checkpoint, "--out", out, "--target", "rtx:sm86:fp16"
    )
    assert Bundle.open(out).manifest.created == opened.manifest.created


def test_many_categories_go_through_in_blocks(trained, monkeypatch):
    """The same graph whatever the size of a block."""
    _, model = restore_model(load_checkpoint(trained(pooling="fused")))
    folded = fold(model)
    image = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    encoder = encoder_to_onnx(model.encoder, folded, image)
    monkeypatch.setattr("sdpl.export.fused_head.BLOCK_VALUES", 3 * 4 * 24)  # three of the ten categories
    graph = add_fused_head(encoder, folded.constants, "sigmoid")
    onnx.checker.check_model(graph)
    session = pytest.importorskip("onnxruntime").InferenceSession(graph.SerializeToString())
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(session.run(["scores"], {"image": images})[0], model.scores(images), atol=1e-5)


def test_sigmoid_masks_train_and_evaluate_but_do_not_export(sdpl, fails, trained, scenes, tmp_path):
    checkpoint = trained(decoupling="sigmoid-mask")
    assert "is for training and evaluation only" in fails("export", checkpoint, "--out", tmp_path / "model.sdpl")
    annotations = scenes / "annotations" / "instances_test.json"
    assert sdpl("eval", checkpoint, annotations, "--json", tmp_path / "m.json").exit_code == 0
    assert json.loads((tmp_path / "m.json").read_text())["images"] == 8


def test_fused_pooling_needs_semantic_attention(fails, config, tmp_path):
    path = config(model={"pooling": "fused", "decoupling": "none"})
    assert "pooling 'fused' pools the features of semantic attention" in fails("train", path, "--out", tmp_path / "r")
