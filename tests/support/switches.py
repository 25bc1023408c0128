"""Models of every kind of encoder and every switch, tiny and with no parameter left at its start."""

import json

import torch

from configs import BACKBONE
from sdpl.train.config import ModelConfig
from sdpl.train.model import new_model

CATEGORIES = ("cat", "traffic light", "dog", "hot dog")
VIT = {**BACKBONE, "vision_cfg": {"image_size": 64, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}}
TIMM = {
    **BACKBONE,
    "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
}
ENCODERS = {
    "ResNet, map pooled": {"image_size": 128, "map_pool": 2},
    "ViT at another size, map pooled": {"backbone": "vit", "image_size": 96, "map_pool": 2},
    "timm tower": {"backbone": "timm"},
}


def trained(settings: dict, folder) -> torch.nn.Module:
    """A model whose every trainable parameter was moved away from its start, so that no term is zero by chance."""
    content = {"vit": VIT, "timm": TIMM}.get(settings.get("backbone"), BACKBONE)
    (folder / "b.json").write_text(json.dumps(content))
    fixed = dict(backbone="b", backbone_config=str(folder / "b.json"), weights=None, image_size=64, map_pool=1)
    torch.manual_seed(0)
    model = new_model(ModelConfig(**{**fixed, "joint_dim": 12, "prompt_tokens": 4, **settings}), CATEGORIES)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()
