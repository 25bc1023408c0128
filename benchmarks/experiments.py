"""The paper's comparisons on the embedded data set: hard digit scenes, few images, 10 to 90 % of the labels known.

    python benchmarks/experiments.py --work FOLDER [--longer] [--out docs]

Writes the sweep's configuration and data into FOLDER and runs it there (`sdpl-sweep`; the same command goes on after a
stop), then docs/benchmarks/results.json, and the curves into docs/pictures. `--longer` repeats some methods at 10 % of
the labels with four times the epochs, into docs/benchmarks/results-longer.json.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import click
import torch
import yaml
from rich.console import Console

from sdpl.demo import tiny_clip
from sdpl.demo.run import CONFIG
from sdpl.demo.scenes import HARD, write_coco
from sdpl.files import replace_folder
from sdpl.runtime.bench import environment
from sdpl.train.config import read_sweep
from sdpl.train.sweep import run_sweep
from sdpl.train.sweep_report import draw_curves, markdown, table

TRAIN, TEST = 300, 400  # scenes; of the training scenes 15 % are held out to choose the best epoch
PROPORTIONS = [p / 10 for p in range(1, 10)]
SEEDS = [0, 1, 2]

SHARED, PLAIN = {"prompts": "shared"}, {"decoupling": "none"}
METHODS = {
    "CoOp": {"model": {**SHARED, **PLAIN}},  # table 4
    "CoOp + csp": {"model": PLAIN},
    "CoOp + sd": {"model": SHARED},
    "full": {},
    "full, convolutional attention": {"model": {"decoupling": "convolutional"}},  # figure 4
    "full, P-BCE": {"train": {"loss": "partial-bce"}},  # figure 7
    "full, gamma- = 1": {"train": {"gamma_neg": 1}},  # figure 8
    "full, gamma- = 4": {"train": {"gamma_neg": 4}},
}
FIGURES = {
    "table4": ["CoOp", "CoOp + csp", "CoOp + sd", "full"],
    "figure4": ["full", "full, convolutional attention"],
    "figure7": ["full", "full, P-BCE"],
    "figure8": ["full", "full, gamma- = 1", "full, gamma- = 4"],
}
EPOCHS, LONGER_EPOCHS = 24, 96
LONGER = ("CoOp + csp", "full", "full, convolutional attention", "full, P-BCE")


def prepare(folder: Path, longer: bool) -> Path:
    """Scenes, encoder, configuration and sweep; returns the sweep's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        with replace_folder(folder / "data", lambda path: False) as data:
            write_coco(data, "train", TRAIN, seed=21, difficulty=HARD)
            write_coco(data, "test", TEST, seed=22, difficulty=HARD)
    tiny_clip.unpack_weights(folder / "tiny_clip.safetensors")
    shutil.copyfile(tiny_clip.CONFIG, folder / "tiny_clip.json")
    base = yaml.safe_load(CONFIG.read_text())
    base["data"]["cache"] = "cache"
    base["model"]["joint_dim"] = 128
    base["train"] |= {"epochs": LONGER_EPOCHS if longer else EPOCHS, "lr": 0.01, "warmup_lr": 0.0025}
    name = "longer" if longer else "base"
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(base))
    sweep = {
        "base": f"{name}.yaml",
        "test": {"annotations": "data/annotations/instances_test.json"},
        "proportions": PROPORTIONS[:1] if longer else PROPORTIONS,
        "seeds": SEEDS,
        "methods": {method: METHODS[method] for method in LONGER} if longer else METHODS,
        "figures": {} if longer else FIGURES,
    }
    path = folder / f"sweep-{name}.yaml"
    path.write_text(yaml.safe_dump(sweep, sort_keys=False))
    return path


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for data and runs.")
@click.option("--out", type=click.Path(path_type=Path), help="The docs folder, to write the numbers and curves there.")
@click.option("--longer", is_flag=True, help="The repetition with more epochs.")
def main(work: Path, out: Path | None, longer: bool) -> None:
    sweep = read_sweep(prepare(work, longer))
    results = run_sweep(sweep, work / ("longer" if longer else "runs"), Console())
    Console(width=200).print(table(results, "embedded data set, hard scenes"))
    print(markdown(results))
    if out is not None:
        report = {
            "environment": {**environment(), "torch": torch.__version__},
            "data": {"train_scenes": TRAIN, "test_scenes": TEST, "difficulty": asdict(HARD)},
            "epochs": LONGER_EPOCHS if longer else EPOCHS,
            "results": [asdict(result) for result in results],
        }
        (out / "benchmarks" / f"results{'-longer' if longer else ''}.json").write_text(
            json.dumps(report, indent=1) + "\n"
        )
        for name, methods in sweep.figures.items():
            draw_curves(results, methods, out / "pictures" / f"{name}.png")


if __name__ == "__main__":
    main()
