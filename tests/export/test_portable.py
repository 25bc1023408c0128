"""model.onnx of every kind of encoder in engines that know nothing of sdpl: each must give PyTorch's scores."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from switches import ENCODERS, trained

from sdpl.export.fold import fold
from sdpl.export.head import add_head
from sdpl.export.onnx import encoder_to_onnx, lowered, save
from sdpl.targets import BACKENDS, PRECISIONS

openvino = BACKENDS["openvino"].load()  # without its usage data
pytestmark = pytest.mark.slow


def by_onnxruntime(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["scores", "attention"], {"image": images})


def by_openvino(path, images):
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    results = openvino.Core().compile_model(path, "CPU", config)(images)
    return results["scores"], results["attention"]


def by_opencv(path, images):
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images, "image")
    return network.forward(["scores", "attention", "embedding"])[:2]  # it wants all of them named


def by_reference(path, images):
    return ReferenceEvaluator(str(path)).run(["scores", "attention"], {"image": images})


ENGINES = {"ONNX Runtime": by_onnxruntime, "OpenVINO": by_openvino, "OpenCV": by_opencv, "onnx reference": by_reference}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(kind of encoder) -> a PyTorch model and the path of its whole graph, made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            model = trained({"pooling": "trunk", **ENCODERS[name]}, folder)
            side, folded = model.config.image_size, fold(model)
            encoder = encoder_to_onnx(model.encoder, folded, torch.zeros(2, side, side, 3, dtype=torch.uint8))
            save(lowered(add_head(encoder, folded.constants, "sigmoid")), folder / "model.onnx")
            made[name] = model, folder / "model.onnx"
        return made[name]

    return make


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_engine_gives_the_same_scores(models, encoder, engine):
    model, path = models(encoder)
    side = model.config.image_size
    for batch in (1, 3):
        images = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        scores, attention = ENGINES[engine](path, images)
        expected_scores, expected_attention = model.attention(images)
        assert np.ptp(expected_scores, axis=1).min() > 1e-3  # the categories can be told apart
        np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=PRECISIONS["fp32"].score)
        np.testing.assert_allclose(attention.reshape(expected_attention.shape), expected_attention, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_another_image_gives_other_scores(models, engine):
    """So that the comparison above says something."""
    model, path = models("ResNet, map pooled")
    side = model.config.image_size
    black, white = (np.full((1, side, side, 3), value, np.uint8) for value in (0, 255))
    assert np.abs(ENGINES[engine](path, black)[0] - ENGINES[engine](path, white)[0]).max() > 1e-4


def test_a_vit_needs_a_newer_opset_than_a_resnet(models):
    opsets = {name: onnx.load(models(name)[1]).opset_import[0].version for name in ENCODERS}
    assert opsets["ResNet, map pooled"] == 14
    assert opsets["ViT at another size, map pooled"] == 17  # LayerNormalization
