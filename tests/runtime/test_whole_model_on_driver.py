"""An engine of the whole model, as a separable head makes one, on the driver of host memory: no kernel of ours runs."""

import numpy as np
import onnxruntime
import pytest
from host_driver import get
from host_encoder import HostEncoder

from sdpl.bundle import Bundle
from sdpl.runtime.backends import Choice
from sdpl.runtime.device import Cuda
from sdpl.runtime.recognizer import Recognizer
from sdpl.runtime.two_stage import TwoStage

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

TARGET = "rtx:sm86:fp16"
HELD = ("used", "pinned", "streams", "graphs", "modules")


@pytest.fixture
def recognizer(gpu_bundle):
    """The CPU's graph as the engine of a GPU target."""
    before = [get(name) for name in HELD]
    bundle = Bundle.open(gpu_bundle)
    target = bundle.manifest.targets[TARGET]
    whole = target.model_copy(update={"files": {"model": bundle.manifest.targets["cpu:fp32"].files["model"]}})
    encoder = HostEncoder(bundle.file(whole.files["model"]), outputs=("scores", "attention", "embedding"))
    with Recognizer(bundle, Choice(TARGET, TwoStage("host", bundle, whole, encoder, None, Cuda()), {})) as opened:
        yield opened
    assert [get(name) for name in HELD] == before


def test_every_output_is_the_graph_s_first_and_replayed(recognizer, gpu_bundle):
    bundle = Bundle.open(gpu_bundle)
    images = bundle.proof()[0]
    path = bundle.file(bundle.manifest.targets["cpu:fp32"].files["model"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    scores, attention, embeddings = session.run(["scores", "attention", "embedding"], {"image": images})
    launches = get("cuLaunchKernel")
    for count in (1, 3, 6, 3):
        np.testing.assert_allclose(recognizer.scores(images[:count]), scores[:count], atol=1e-6)
        found = recognizer.backend.attention(images[:count])
        np.testing.assert_allclose(found[0], scores[:count], atol=1e-6)
        np.testing.assert_allclose(found[1], attention[:count], atol=1e-6)
        found = recognizer.embeddings(images[:count])
        np.testing.assert_allclose(found[0], scores[:count], atol=1e-6)
        np.testing.assert_allclose(found[1], embeddings[:count], atol=1e-6)
    assert get("cuLaunchKernel") == launches
    assert recognizer.backend.describe()["cuda_graphs"] == "True"
