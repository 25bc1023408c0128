"""The experiment behind `model.attention_spread`: mAP for starts of different sharpness (decision 0050).

    python experiments/attention_start.py --work FOLDER [--spread 0.4 --spread none ...]

FOLDER is that of `experiments/paper.py`: its training scenes, and its validation scenes with all labels, never the test
scenes. The frozen trunk's maps are computed once; head and prompts train from them with seeds of their own, the last
epoch counts.
"""

import copy
from pathlib import Path

import click
import numpy as np
import torch
from paper import TUNE_SEEDS, prepare

from sdpl.data.images import LabelledImages
from sdpl.evaluate.metrics import mean_average_precision
from sdpl.train.config import Config, Split, check_config
from sdpl.train.config_files import read_values
from sdpl.train.distributed import Processes
from sdpl.train.features.sources import FeatureSource
from sdpl.train.loop import START_IMAGES, learning_rate
from sdpl.train.model import PartialLabelModel, new_model
from sdpl.train.splits import load_data, read_split
from sdpl.train.step import Learner

SPREADS = ("none", "0.1", "0.2", "0.3", "0.4", "0.7", "1", "2")
SEEDS, PROPORTIONS, LEARNING_RATES = TUNE_SEEDS, (0.1, 0.3), (0.01, 0.02)


def configuration(base: Path, spread: str, proportion: float, seed: int, lr: float) -> Config:
    values = copy.deepcopy(read_values(base))
    values["data"] |= {"known_proportion": proportion, "mask_seed": seed}
    values["model"] |= {"attention_spread": None if spread == "none" else float(spread)}
    values["train"] |= {"seed": seed, "lr": lr, "warmup_lr": lr / 4}
    return check_config(values)


def maps(model: PartialLabelModel, config: Config, data: LabelledImages) -> torch.Tensor:
    """f [N,L,D] of a split."""
    groups = [range(i, min(i + 32, len(data))) for i in range(0, len(data), 32)]
    return torch.cat([f for _, f in FeatureSource(model, config, torch.device("cpu")).plain(data).batches(groups)])


def one_run(work: Path, config: Config) -> float:
    """mAP in percent on the validation scenes."""
    torch.manual_seed(config.train.seed)
    data, _ = load_data(config)
    model = new_model(config.model, data.categories)
    val = read_split(Split(annotations=str(work / "data" / "annotations" / "instances_val.json")), data.categories)
    f, f_val = maps(model, config, data), maps(model, config, val)
    model.decoupling.scale_attention(model.attention_factor(f[:START_IMAGES]))
    learner, labels = Learner(model, config, Processes()), torch.from_numpy(data.labels)
    shuffle = torch.Generator().manual_seed(config.train.seed)
    for epoch in range(config.train.epochs):
        for rows in torch.randperm(len(data), generator=shuffle).split(config.train.batch_size):
            learner.step([(rows.tolist(), f[rows])], labels, len(rows), learning_rate(config.train, epoch))
    with torch.no_grad():
        t = model.text_features()
        scores = torch.cat([model.probabilities(model.pool(part, t)[0]) for part in f_val.split(64)]).numpy()
    return 100 * mean_average_precision(scores, val.labels)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--spread", "spreads", multiple=True, default=SPREADS, show_default=True)
@click.option("--lr", "rates", type=float, multiple=True, default=LEARNING_RATES, show_default=True)
def main(work: Path, spreads: tuple[str, ...], rates: tuple[float, ...]) -> None:
    base = prepare(work.resolve())
    for spread in spreads:
        for lr in rates:
            for proportion in PROPORTIONS:
                runs = [one_run(work.resolve(), configuration(base, spread, proportion, s, lr)) for s in SEEDS]
                shown = " ".join(f"{run:.1f}" for run in runs)
                print(f"spread {spread}, lr {lr}, {proportion:.0%} known: {np.mean(runs):.1f} ({shown})", flush=True)


if __name__ == "__main__":
    main()
