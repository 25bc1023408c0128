"""What the campaign damages: a tiny model, really trained and exported once, and label files of every format."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdpl.data.formats import read_labels, write_labels
from sdpl.demo.scenes import write_coco
from sdpl.export.build import Options, export
from sdpl.targets import parse_targets
from sdpl.train.config_files import read_config
from sdpl.train.loop import train

BACKBONE = {  # a CLIP with CLIP's own structure and random weights; 64-pixel images give a 2x2 map
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
MODEL = {
    "backbone": "campaign-RN",
    "backbone_config": "backbone.json",
    "weights": None,
    "image_size": 64,
    "map_pool": 1,
    "joint_dim": 24,
    "prompt_tokens": 4,
}


@dataclass(frozen=True)
class Material:
    """Paths in the campaign's folder."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def cached_config(self) -> Path:
        return self.folder / "cached.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "run" / "model.ckpt"

    @property
    def bundle(self) -> Path:
        return self.folder / "model.sdpl"

    @property
    def labels(self) -> list[Path]:
        return sorted((self.folder / "labels").iterdir())

    @property
    def annotations(self) -> Path:
        return self.folder / "annotations" / "instances_train.json"


def material(folder: Path) -> Material:
    """Made on the first call; then what is there. `ready` is written last."""
    made = Material(folder.resolve())
    if (made.folder / "ready").exists():
        return made
    shutil.rmtree(made.folder, ignore_errors=True)
    made.folder.mkdir(parents=True)
    write_coco(made.folder, "train", 24, seed=1)
    (made.folder / "backbone.json").write_text(json.dumps(BACKBONE))
    data = {"train": {"annotations": "annotations/instances_train.json"}, "val_fraction": 0.25}
    training = {"epochs": 3, "batch_size": 4, "device": "cpu", "checkpoint_steps": 1}
    for path, extra in ((made.config, {}), (made.cached_config, {"cache": "../cache-of-run"})):
        path.write_text(yaml.safe_dump({"data": data | extra, "model": MODEL, "train": training}))
    train(read_config(made.config), made.folder / "run")
    export(made.checkpoint, made.bundle, Options(targets=parse_targets(("cpu:fp32",))))
    write_tables(made)
    (made.folder / "ready").write_text("")
    return made


def write_tables(made: Material) -> None:
    """The annotations in every format."""
    folder = made.folder / "labels"
    folder.mkdir()
    for suffix in ("csv", "jsonl", "parquet"):
        write_labels(read_labels(made.annotations), folder / f"labels.{suffix}")
    shutil.copy(made.annotations, folder / "labels.json")
