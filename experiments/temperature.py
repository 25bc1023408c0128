"""The experiment behind `model.inverse_temperature`: mAP and F1 on the demo's scenes for values of 1/tau.

    python experiments/temperature.py [--out docs/benchmarks/temperature.json]

The frozen trunk's maps are computed once; head and prompts are trained from them as the demo's configuration says,
with three seeds for weights, order and mask. Measured on a validation split of the training scenes with all labels,
never on the test scenes.
"""

import json
import math
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
import yaml

from sdpl.data.formats import read_labels
from sdpl.data.masks import mask_labels
from sdpl.data.reading import batches
from sdpl.demo import tiny_clip
from sdpl.demo.run import CONFIG
from sdpl.demo.scenes import CATEGORIES, write_coco
from sdpl.evaluate.metrics import f1_metrics, mean_average_precision
from sdpl.runtime.environment import environment
from sdpl.train.config import check_config
from sdpl.train.loop import learning_rate
from sdpl.train.losses import partial_asymmetric_loss
from sdpl.train.model import new_model

VALUES = (5.0, 10.0, 20.0, 50.0, 100.0)
SEEDS = (0, 1, 2)
TRAIN, VAL = 1000, 400


def configuration(folder: Path, inverse_temperature: float):
    values = yaml.safe_load(CONFIG.read_text())
    values["model"] |= {
        "backbone_config": str(tiny_clip.CONFIG),
        "weights": str(folder / "tiny_clip.safetensors"),
        "inverse_temperature": inverse_temperature,
    }
    return check_config(values)


@torch.no_grad()
def maps_and_labels(model, folder: Path) -> tuple[torch.Tensor, np.ndarray]:
    """f [N,L,D] and full labels [N,C] of the scenes."""
    data = read_labels(write_coco(folder, "train", TRAIN + VAL, seed=11))
    chunks = batches(data, model.config.image_size, 32)
    return torch.cat([model.encoder.locations(torch.from_numpy(images)) for images, _ in chunks]), data.labels


def train_head(model, config, f: torch.Tensor, labels: np.ndarray, seed: int) -> None:
    settings = config.train
    known = torch.from_numpy(mask_labels(labels, config.data.known_proportion, seed))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(
        parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    for epoch in range(settings.epochs):
        optimiser.param_groups[0]["lr"] = learning_rate(settings, epoch)
        for rows in torch.randperm(len(f)).split(settings.batch_size):
            logits = model.decoupling(f[rows], model.words, model.text_features())[0]
            loss = partial_asymmetric_loss(logits, known[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


def one_run(folder: Path, value: float, seed: int, f: torch.Tensor, labels: np.ndarray) -> dict:
    config = configuration(folder, value)
    torch.manual_seed(seed)
    model = new_model(config.model, CATEGORIES)
    model.decoupling.scale_attention(model.attention_factor(f[:32]))
    train_head(model, config, f[:TRAIN], labels[:TRAIN], seed)
    with torch.no_grad():
        scores = model.decoupling(f[TRAIN:], model.words, model.text_features())[0].sigmoid().numpy()
    truth = labels[TRAIN:]
    f1 = f1_metrics(scores, truth)
    return {
        "inverse_temperature": value,
        "seed": seed,
        "mAP": 100 * mean_average_precision(scores, truth),
        "OF1": 100 * f1["OF1"],
        "CF1": 100 * f1["CF1"],
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path))
def main(out: Path | None) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_clip.unpack_weights(folder / "tiny_clip.safetensors")
        model = new_model(configuration(folder, 20.0).model, CATEGORIES)
        f, labels = maps_and_labels(model, folder)
        for value in VALUES:
            runs = [one_run(folder, value, seed, f, labels) for seed in SEEDS]
            rows += runs
            shown = "  ".join(f"{key} {np.mean([run[key] for run in runs]):.2f}" for key in ("mAP", "OF1", "CF1"))
            deviation = np.std([run["mAP"] for run in runs]) * math.sqrt(len(runs) / (len(runs) - 1))
            print(f"1/tau {value:5.0f}:  {shown}  (mAP +- {deviation:.2f})")
    if out is not None:
        out.write_text(
            json.dumps({"environment": {**environment(), "torch": torch.__version__}, "rows": rows}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
