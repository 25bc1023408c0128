"""model.onnx in engines that know nothing of sdpl: each must give ONNX Runtime's scores. README names who runs it."""

import cv2
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from switches import ENCODERS, trained

from sdpl.export.fold import fold
from sdpl.export.head import add_head
from sdpl.export.onnx import encoder_to_onnx, lowered, save


def by_openvino(path, images):
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    results = openvino.Core().compile_model(path, "CPU", config)(images)
    return results["scores"], results["attention"]


def by_opencv(path, images):
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(images, "image")
    return network.forward(["scores", "attention"])


def by_reference(path, images):
    return ReferenceEvaluator(str(path)).run(["scores", "attention"], {"image": images})


ENGINES = {"OpenVINO": by_openvino, "OpenCV": by_opencv, "onnx reference": by_reference}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """models(kind of encoder) -> path and image side of a whole model, made once."""
    made = {}

    def make(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("model")
            model = trained({"pooling": "trunk", **ENCODERS[name]}, folder)
            side, folded = model.config.image_size, fold(model)
            encoder = encoder_to_onnx(model.encoder, folded, torch.zeros(2, side, side, 3, dtype=torch.uint8))
            save(lowered(add_head(encoder, folded.constants, "sigmoid")), folder / "model.onnx")
            made[name] = folder / "model.onnx", side
        return made[name]

    return make


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_engine_gives_the_same_scores(models, encoder, engine):
    path, side = models(encoder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
        expected = session.run(["scores", "attention"], {"image": images})
        for wanted, actual in zip(expected, ENGINES[engine](path, images), strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_another_image_gives_other_scores(models, engine):
    """So that the comparison above says something."""
    path, side = models("ResNet, map pooled")
    black, white = (np.full((1, side, side, 3), value, np.uint8) for value in (0, 255))
    assert np.abs(ENGINES[engine](path, black)[0] - ENGINES[engine](path, white)[0]).max() > 1e-4


def test_a_vit_needs_a_newer_opset_than_a_resnet(models):
    opsets = {name: onnx.load(models(name)[0]).opset_import[0].version for name in ENCODERS}
    assert opsets["ResNet, map pooled"] == 14
    assert opsets["ViT at another size, map pooled"] == 17  # LayerNormalization
