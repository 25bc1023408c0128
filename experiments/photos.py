"""Can a few real photos tell the methods apart? Half of a COCO file's photos train, the other half measures.

    python experiments/photos.py COCO_JSON IMAGES --work FOLDER [--out docs]

For each seed the photos are halved anew. Categories that too few photos show are left out: their AP would be noise. The
encoder is the demo's tiny CLIP, which has seen digits only. Methods are those of `experiments/paper.py`, all with one
learning rate. A stop is gone on from; --out writes docs/benchmarks/results-photos.json.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml
from paper import METHODS, at_rate, say

from sdpl.data.formats import read_labels
from sdpl.demo import tiny_clip
from sdpl.files import write_json
from sdpl.runtime.environment import environment
from sdpl.train.config import Split, SweepConfig
from sdpl.train.sweep import run_sweep
from sdpl.train.sweep_report import Result, paired, spread

SEEDS, PROPORTIONS = (0, 1, 2, 3, 4), (0.3, 0.9)
LEAST = 10  # photos that show a category
SHOWN = {name: METHODS[name] for name in ("full", "CoOp + sd", "CoOp + csp", "CoOp", "full, P-BCE", "linear probe")}
LEARNING_RATE, EPOCHS = 0.01, 24
PAIRS = [("full", other) for other in SHOWN if other != "full"]
Content = dict[str, Any]


def halves(content: Content, seed: int) -> tuple[Content, Content]:
    """The same file with half of its photos each, and only the categories that enough photos show."""
    photos = {c["id"]: {a["image_id"] for a in content["annotations"] if a["category_id"] == c["id"]}
              for c in content["categories"]}  # fmt: skip
    kept = [c for c in content["categories"] if len(photos[c["id"]]) >= LEAST]
    order = np.random.default_rng(seed).permutation(len(content["images"])).tolist()
    middle = len(order) // 2
    result = []
    for part in (order[:middle], order[middle:]):
        images = [content["images"][i] for i in sorted(part)]
        ids, names = {image["id"] for image in images}, {c["id"] for c in kept}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids and a["category_id"] in names]
        result.append({"images": images, "categories": kept, "annotations": annotations})
    return result[0], result[1]


def prepare(content: Content, images: Path, folder: Path, seed: int) -> SweepConfig:
    """One seed's halves, encoder and sweep, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, half in zip(("train", "test"), halves(content, seed), strict=True):
        write_json(folder / f"{name}.json", half)
    tiny_clip.unpack_weights(folder / "tiny_clip.safetensors")
    base = {
        "data": {"train": _split(folder, "train", images), "val_fraction": 0.1, "cache": str(folder / "cache")},
        "model": {
            "backbone": "sdpl-tiny-RN",
            "backbone_config": str(tiny_clip.CONFIG),
            "weights": str(folder / "tiny_clip.safetensors"),
            "image_size": 192,
            "map_pool": 1,
            "joint_dim": 128,
        },
        "train": {"epochs": EPOCHS, "batch_size": 32, "keep": "last"},
    }
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    methods = {name: at_rate(changes, LEARNING_RATE) for name, changes in SHOWN.items()}
    test = Split(**_split(folder, "test", images))
    return SweepConfig(
        base=str(folder / "base.yaml"), test=test, methods=methods, proportions=PROPORTIONS, seeds=(seed,)
    )


def _split(folder: Path, name: str, images: Path) -> dict[str, str]:
    return {"annotations": str(folder / f"{name}.json"), "images": str(images)}


def chance(folder: Path, images: Path) -> float:
    """mAP in percent of scores that say nothing: the mean share of photos that show a category."""
    labels = read_labels(folder / "test.json", images).labels
    return float(100 * (labels == 1).mean())


def write_report(results: Sequence[Result], chances: list[float], out: Path | None) -> None:
    print(f"chance: {np.mean(chances):.1f}")
    pairs = []
    for proportion in PROPORTIONS:
        rows = [r for r in results if r.proportion == proportion]
        for method in SHOWN:
            mean, deviation = spread(np.array([r.mAP for r in rows if r.method == method]))
            print(f"{proportion:.0%} known, {method}: {mean:.1f}" + ("" if isnan(deviation) else f" ± {deviation:.1f}"))
        for a, b in PAIRS:
            mean, half, n = paired(rows, a, b)
            pairs.append({"method": a, "minus": b, "known": proportion, "mAP": mean, "ci95": half, "seeds": n})
            print(f"{proportion:.0%} known, {a} - {b}: {mean:+.1f} ± {half:.1f} ({n} seeds)")
    if out is not None:
        content = {
            "environment": {**environment(), "torch": torch.__version__},
            "chance": chances,
            "results": [asdict(result) for result in results],
            "paired": pairs,
        }
        (out / "benchmarks" / "results-photos.json").write_text(json.dumps(content, indent=1) + "\n")


@click.command()
@click.argument("annotations", type=click.Path(exists=True, path_type=Path))
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for halves and runs.")
@click.option("--out", type=click.Path(path_type=Path), help="The docs folder.")
def main(annotations: Path, images: Path, work: Path, out: Path | None) -> None:
    content = json.loads(annotations.read_bytes())
    results: list[Result] = []
    chances = []
    for seed in SEEDS:
        folder = work.resolve() / f"halves-{seed}"
        results += run_sweep(prepare(content, images.resolve(), folder, seed), folder / "runs", say)
        chances.append(chance(folder, images.resolve()))
    write_report(results, chances, out)


if __name__ == "__main__":
    main()
