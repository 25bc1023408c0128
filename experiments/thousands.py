"""Thousands of categories on real photos: does training with the defaults converge, and does the separable head hold?

    python experiments/thousands.py COCO_JSON IMAGES --work FOLDER [--categories 3000]

The photos of a COCO file keep their labels; the file's categories are filled up with names of ImageNet-21k's synsets
(timm ships them) until there are as many as asked for, all of them absent. The tiny CLIP of the demo is the encoder, so
nothing follows about accuracy: what is looked at is the loss by epoch, at several learning rates, and how far the
separable head's scores are from the exact head's on every photo.
"""

import csv
import json
from pathlib import Path

import click
import numpy as np
import timm.data
import yaml

from sdpl import Recognizer
from sdpl.demo import tiny_clip
from sdpl.errors import UserError
from sdpl.export.build import Options, export
from sdpl.targets import parse_targets
from sdpl.train.config import TrainConfig
from sdpl.train.config_files import read_config
from sdpl.train.loop import train

LEARNING_RATES = (0.0005, 0.001, TrainConfig().lr, 0.01)
LEMMAS = Path(timm.data.__file__).parent / "_info" / "imagenet_synset_to_lemma.txt"


def prepare(annotations: Path, images: Path, work: Path, count: int, epochs: int) -> Path:
    """Label file, encoder and configuration in `work`; returns the configuration's file."""
    work.mkdir(parents=True, exist_ok=True)
    content = json.loads(annotations.read_bytes())
    own = content["categories"]
    lemmas = (line.split("\t")[1].split(",")[0].strip() for line in LEMMAS.read_text().splitlines())
    distinct = {name.casefold(): name for name in lemmas}
    others = [name for key, name in distinct.items() if key not in {category["name"] for category in own}]
    picked = np.linspace(0, len(others) - 1, count - len(own)).astype(int)
    content["categories"] = own + [{"id": 1000 + i, "name": others[i]} for i in picked.tolist()]
    (work / "labels.json").write_text(json.dumps(content))
    tiny_clip.unpack_weights(work / "tiny_clip.safetensors")
    (work / "tiny_clip.json").write_bytes(tiny_clip.CONFIG.read_bytes())
    values = {
        "data": {
            "train": {"annotations": "labels.json", "images": str(images.resolve())},
            "val_fraction": 0.15,
            "cache": "cache",
        },
        "model": {
            "backbone": "sdpl-tiny-RN",
            "backbone_config": "tiny_clip.json",
            "weights": "tiny_clip.safetensors",
            "image_size": 192,
            "map_pool": 1,
            "joint_dim": 256,
        },
        "train": {"epochs": epochs, "batch_size": 32, "keep": "last"},
    }
    path = work / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses(config: Path, work: Path, lr: float) -> list[float]:
    """The mean loss of each epoch."""
    out = work / f"lr-{lr:g}"
    if not (out / "model.ckpt").exists():
        train(read_config(config, [f"train.lr={lr}", f"train.warmup_lr={lr / 4}"]), out)
    with (out / "log.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def separable(checkpoint: Path, images: list[Path]) -> str:
    """What the separable head's proof says of a checkpoint, and what all images say of it."""
    scores = {}
    for head in ("exact", "separable"):
        bundle = checkpoint.with_name(f"{head}.sdpl")
        options = Options(targets=parse_targets(("cpu:fp32",)), head=head, images=images[:8], calibrate=images)
        try:
            export(checkpoint, bundle, options)
        except UserError as error:
            return f"refused: {error}"
        with Recognizer.open(bundle) as recognizer:
            pixels = np.stack([recognizer.preprocess(path) for path in images])
            scores[head] = recognizer.scores(pixels)
    return f"scores differ by at most {np.abs(scores['separable'] - scores['exact']).max():.1e} on {len(images)} photos"


@click.command()
@click.argument("annotations", type=click.Path(exists=True, path_type=Path))
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--categories", default=3000, show_default=True)
@click.option("--epochs", default=6, show_default=True)
def main(annotations: Path, images: Path, work: Path, categories: int, epochs: int) -> None:
    config = prepare(annotations, images, work.resolve(), categories, epochs)
    for lr in LEARNING_RATES:
        shown = " ".join(f"{loss:.1f}" for loss in losses(config, work.resolve(), lr))
        print(f"{categories} categories, lr {lr:g}: loss by epoch {shown}", flush=True)
    checkpoint = work / f"lr-{TrainConfig().lr:g}" / "model.ckpt"
    photos = sorted(images.glob("*.jpg"))
    print(f"{categories} categories, separable head: {separable(checkpoint, photos)}")


if __name__ == "__main__":
    main()
