"""Encoder weights from files: every form that open_clip and OpenAI publish, and what is said about the wrong ones."""

import json
import time

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from configs import BACKBONE
from sdpl.errors import UserError
from sdpl.train.config import ModelConfig
from sdpl.train.model import new_model
from sdpl.train.model import weights as module
from sdpl.train.model.weights import read_weights

pytestmark = pytest.mark.slow

FORMS = ("state dict", "training checkpoint", "safetensors", "TorchScript archive")


@pytest.fixture
def backbone(tmp_path):
    """backbone(**changes) -> the path of the tiny backbone's configuration."""

    def write(**changes):
        path = tmp_path / "tiny.json"
        path.write_text(json.dumps({**BACKBONE, **changes}))
        return str(path)

    return write


def settings(backbone, path, **changes):
    fixed = dict(backbone="tiny", backbone_config=backbone, weights=str(path), image_size=64, map_pool=1)
    return ModelConfig(**{**fixed, "joint_dim": 8, "prompt_tokens": 2, **changes})


def made_by_open_clip(tmp_path, form, **changes):
    """A model of open_clip with random weights, and a file of it in one of the forms."""
    (tmp_path / "made-tiny.json").write_text(json.dumps({**BACKBONE, **changes}))
    open_clip.add_model_config(tmp_path / "made-tiny.json")
    torch.manual_seed(5)
    model = open_clip.create_model("made-tiny").eval()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(model.state_dict(), path)
    elif form == "TorchScript archive":
        traced = open_clip.trace_model(model, batch_size=1)
        torch.jit.save(traced, str(path))
    else:
        state = model.state_dict()
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
        torch.save(wrapped if form == "training checkpoint" else state, path)
    return model, path


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_to_the_same_features(tmp_path, backbone, form):
    made, path = made_by_open_clip(tmp_path, form, quick_gelu=True)
    knows = form == "TorchScript archive"  # the others are told
    loaded = new_model(settings(backbone(), path, quick_gelu=None if knows else True), ("cat", "dog")).encoder
    tokens = loaded.tokenize(["a cat", "two dogs"])
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(loaded.clip.encode_text(tokens), made.encode_text(tokens), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loaded.clip.encode_image(images), made.encode_image(images), rtol=1e-4, atol=1e-5)
    plain = new_model(settings(backbone(), path, quick_gelu=False), ("cat", "dog")).encoder
    assert not torch.allclose(plain.clip.encode_text(tokens), made.encode_text(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_torchscript_archive_says_its_activation(tmp_path, quick_gelu):
    _, path = made_by_open_clip(tmp_path, "TorchScript archive", quick_gelu=quick_gelu)
    assert read_weights(path).quick_gelu is quick_gelu


def test_tensors_alone_never_choose_the_activation(tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(3)}, tmp_path / "RN50.pt")
    config = ModelConfig(backbone="RN50", weights=str(tmp_path / "RN50.pt"))
    with pytest.raises(UserError, match=r"do not say whether RN50 was trained with QuickGELU: set model.quick_gelu"):
        new_model(config, ("cat",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dim": 24}, r"its text_projection is \[16, 24\], the model's is \[16, 16\]"),
        (
            {"text_cfg": {**BACKBONE["text_cfg"], "layers": 1}},
            r"it has no transformer.resblocks.1.ln_1.weight \[16\]",
        ),
        (
            {"text_cfg": {**BACKBONE["text_cfg"], "layers": 3}},
            r"its transformer.resblocks.2.\S+ \[\d+\] has no place in the model",
        ),
    ],
)
def test_another_architecture_is_named_by_its_first_tensor(tmp_path, backbone, change, message):
    _, path = made_by_open_clip(tmp_path, "state dict", **change)
    with pytest.raises(UserError, match=message):
        new_model(settings(backbone(), path), ("cat",))


def test_an_absent_tag_says_in_seconds_what_to_fetch(monkeypatch):
    monkeypatch.setattr(module, "_in_cache", lambda repository: None)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # refuses at once
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"fetch https://\S+/RN101.pt elsewhere, put the file anywhere here, and set"):
        module._downloaded(ModelConfig())


def test_a_network_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "NETWORK_S", 0.05)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module.urllib.request, "urlopen", lambda *rest, **options: time.sleep(0.3))
    assert not module._reachable()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_info_says_what_a_file_is(sdpl, fails, tmp_path):
    _, path = made_by_open_clip(tmp_path, "TorchScript archive", quick_gelu=True)
    shown = sdpl("info", "--weights", path).output
    assert "TorchScript archive" in shown
    assert "QuickGELU" in shown
    assert "ResNet, blocks [1, 1, 1, 1], width 8" in shown
    assert shown.splitlines()[-1].split() == ["model.backbone", "made-tiny"]  # known here, as it was made here
    (tmp_path / "no.pt").write_text("not weights")
    assert "cannot be loaded as weights" in fails("info", "--weights", tmp_path / "no.pt")
    assert "no such file" in fails("info", "--weights", tmp_path / "gone.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    assert "is a state dict of 1 tensors, but holds no CLIP image tower" in fails(
        "info", "--weights", tmp_path / "other.pt"
    )


def test_info_names_the_backbones_that_fit(sdpl, tmp_path):
    torch.save(open_clip.create_model("ViT-S-32-alt").state_dict(), tmp_path / "w.pt")
    found = json.loads(sdpl("info", "--weights", tmp_path / "w.pt", "--json").output)
    assert found["model.backbone"] == "ViT-S-32-alt"
    assert found["activation"] == "not in the file: set model.quick_gelu"
