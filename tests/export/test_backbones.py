"""Towers of open_clip, by name: built at another image size, trained for a step, exported, and the graph's scores."""

import numpy as np
import onnxruntime
import pytest
import torch

from sdpl.errors import UserError
from sdpl.export.fold import fold
from sdpl.export.head import add_head
from sdpl.export.onnx import encoder_to_onnx
from sdpl.targets import PRECISIONS
from sdpl.train.config import ModelConfig, check_config
from sdpl.train.distributed import Processes
from sdpl.train.model import new_model
from sdpl.train.model.weights import first_difference
from sdpl.train.step import Learner

CATEGORIES = ("cat", "traffic light", "dog")
TOWERS = {  # name -> image size, map pooling, side of the map
    "ViT-S-32-alt": (192, 2, 3),
    "vit_medium_patch16_gap_256": (192, 2, 6),
    "EVA02-B-16": (192, 2, 6),
}
EXPORTED = ("vit_medium_patch16_gap_256",)


def trained(name):
    """A model with random weights after one step, and its images uint8 [B,S,S,3]."""
    size, pool, _ = TOWERS[name]
    model = dict(backbone=name, weights=None, image_size=size, map_pool=pool, joint_dim=16, prompt_tokens=2)
    config = check_config({"data": {"train": {"annotations": "a"}}, "model": model})
    torch.manual_seed(0)
    learner = Learner(new_model(config.model, CATEGORIES), config, Processes())
    images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)
    with torch.no_grad():
        f = learner.model.encoder.locations(images)
    labels = torch.tensor([[1, -1, 0], [-1, 1, 1]], dtype=torch.int8)
    losses = [learner.step([([0, 1], f)], labels, 2, lr=0.01) for _ in range(2)]
    assert losses[1] < losses[0]
    return learner.model.eval(), images


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_trains_at_another_size_and_exports(name):
    model, images = trained(name)
    assert model.map_size == [TOWERS[name][2]] * 2
    if name not in EXPORTED:
        return
    graph = add_head(encoder_to_onnx(model.encoder, fold(model), images), fold(model).constants, "sigmoid")
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    scores, attention = session.run(["scores", "attention"], {"image": images.numpy()})
    expected = model.attention(images.numpy())
    np.testing.assert_allclose(scores, expected[0], rtol=0, atol=PRECISIONS["fp32"].score)
    np.testing.assert_allclose(attention.reshape(expected[1].shape), expected[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_timm_tower_s_weights_load_at_another_size(tmp_path):
    """Its position embeddings are resized to the new grid; everything else is the same."""
    name = "vit_medium_patch16_gap_256"

    def settings(size, weights):
        model = dict(backbone=name, weights=weights, image_size=size, map_pool=1, joint_dim=16, quick_gelu=False)
        return check_config({"data": {"train": {"annotations": "a"}}, "model": model}).model

    small = new_model(settings(64, None), CATEGORIES)
    torch.save(small.encoder.clip.state_dict(), tmp_path / "w.pt")
    large = new_model(settings(128, str(tmp_path / "w.pt")), CATEGORIES)
    own, loaded = small.encoder.clip.state_dict(), large.encoder.clip.state_dict()
    assert "visual.trunk.pos_embed is [1, 16, 512], the model's is [1, 64, 512]" in first_difference(own, loaded)
    del own["visual.trunk.pos_embed"]
    assert all(torch.equal(value, loaded[key]) for key, value in own.items())
    grid = loaded["visual.trunk.pos_embed"].reshape(8, 8, 512)
    before = small.encoder.clip.visual.trunk.pos_embed.detach().reshape(4, 4, 512)
    assert torch.nn.functional.cosine_similarity(grid[::2, ::2], before, dim=-1).mean() > 0.5
    other = vars(settings(64, str(tmp_path / "w.pt"))) | {"backbone": "ViT-S-32-alt"}
    with pytest.raises(UserError, match="cannot be loaded for ViT-S-32-alt: its positional_embedding is"):
        new_model(ModelConfig(**other), CATEGORIES)
