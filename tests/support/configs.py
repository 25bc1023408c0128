"""A configuration that trains in seconds, and its backbone."""

import json
from pathlib import Path

import yaml

# A CLIP with CLIP's own structure and random weights; 64-pixel images give a 2x2 map.
BACKBONE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
MODEL = {
    "backbone": "test-RN",
    "backbone_config": "backbone.json",
    "weights": None,
    "image_size": 64,
    "map_pool": 1,
    "joint_dim": 24,
    "prompt_tokens": 4,
}


def write_config(folder: Path, scenes: Path, **changes: dict) -> Path:
    """A configuration that trains in seconds; `changes` by section."""
    (folder / "backbone.json").write_text(json.dumps(BACKBONE))
    values = {
        "data": {"train": {"annotations": str(scenes / "annotations" / "instances_train.json")}, "val_fraction": 0.25},
        "model": dict(MODEL),
        "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
    }
    for section, change in changes.items():
        values[section].update(change)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
