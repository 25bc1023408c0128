import pytest
import torch

from sdpl.bundle import Bundle
from sdpl.export.fold import fold
from sdpl.export.onnx import encoder_to_onnx
from sdpl.train.checkpoint import load_checkpoint, restore_model


@pytest.fixture(scope="session")
def encoder(checkpoint):
    """The float32 encoder's graph of the trained checkpoint. Read only."""
    _, model = restore_model(load_checkpoint(checkpoint))
    return encoder_to_onnx(model.encoder, fold(model), torch.zeros(2, 64, 64, 3, dtype=torch.uint8))


@pytest.fixture(scope="session")
def images(bundle):
    """The images of the proof, uint8 [6,64,64,3]."""
    return Bundle.open(bundle).proof()[0]
