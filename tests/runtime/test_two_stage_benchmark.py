"""benchmarks/two_stage.py on the driver of host memory: everything of it but what PyTorch does on a GPU."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import two_stage
from host_driver import get
from host_encoder import HostEncoder
from torch_encoder import PatchEncoder, TorchEncoder

from sdpl.runtime.two_stage import Encoder

pytestmark = [pytest.mark.slow, pytest.mark.host_driver]

C, BATCHES = 5, (1, 4)


class Session:
    """A PyTorch module on the CPU, called as one of ONNX Runtime's sessions is."""

    def __init__(self, module):
        self.module = module

    def get_inputs(self):
        return [SimpleNamespace(shape=[None, self.module.side, self.module.side, 3])]

    def run(self, names, inputs):
        with torch.inference_mode():
            return [x.half().numpy() for x in self.module(torch.from_numpy(inputs["image"].copy()))]


@pytest.fixture
def parts(monkeypatch):
    """The backend, its module, the head and images."""
    for name, small in (("BATCHES", BATCHES), ("LAUNCHES", 3), ("SOAK", 6), ("MEASURED_S", 0.01)):
        monkeypatch.setattr(two_stage, name, small)
    torch.manual_seed(0)
    module = PatchEncoder(side=32, patch=16, width=16, joint=16, embed=8).eval()
    rng = np.random.default_rng(0)
    shapes = {"v": (C, module.joint), "q": (module.joint,), "t": (C, module.embed)}
    head = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    images = rng.integers(0, 256, (max(BATCHES), module.side, module.side, 3), dtype=np.uint8)
    before = get("used")
    backend = two_stage.make(head, module, HostEncoder(None, session=Session(module)), max(BATCHES))
    yield backend, module, head, images
    backend.close()
    assert get("used") == before


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_answers(parts, batch):
    backend, module, head, images = parts
    expected = two_stage.specified(module, head, images[:batch])
    off = two_stage.answers(backend, expected, {"first": images[:batch], "replayed": images[:batch]})
    assert set(off) == {"first", "replayed", "first, all at once", "replayed, all at once"}
    wrong = two_stage.answers(backend, expected + 0.05, {"first": images[:batch]})
    assert wrong["wrong"] == ["first", "first, all at once"]


def test_every_measurement_runs(parts):
    backend, module, head, images = parts
    found = {
        name: work()
        for name, work in two_stage.measurements(backend, module, head, images)
        if not name.startswith("PyTorch")
    }
    assert set(found) == {
        *(f"{kind}, batch {batch}" for kind in ("device", "head") for batch in BATCHES),
        *(f"model, batch {batch}, callers {callers}" for batch in BATCHES for callers in (1, 2, 4)),
        "soak",
    }
    assert found["soak"]["free_bytes_before"] == found["soak"]["free_bytes_after"]


def test_pytorch_s_encoder_is_called_as_any_other():
    for name, method in vars(Encoder).items():
        if inspect.isfunction(method) and not name.startswith("_"):
            assert inspect.signature(getattr(TorchEncoder, name)) == inspect.signature(method), name
