"""The paper's comparisons on the embedded data set: hard digit scenes, few images, 10 to 90 % of the labels known.

    python experiments/paper.py --work FOLDER --part paper [--out docs]

Writes configuration and data into FOLDER and runs one part there (`sdpl-sweep`; the same command goes on after a stop),
then docs/benchmarks/results-PART.json, and the curves into docs/pictures. Parts: "paper" (table 4, figures 4, 7),
"gamma" (figure 8, every second proportion), "longer" (10 % of the labels, four times the epochs).
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
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
PAPER = {
    "CoOp": {"model": {**SHARED, **PLAIN}},  # table 4
    "CoOp + csp": {"model": PLAIN},
    "CoOp + sd": {"model": SHARED},
    "full": {},
    "full, convolutional attention": {"model": {"decoupling": "convolutional"}},  # figure 4
    "full, P-BCE": {"train": {"loss": "partial-bce"}},  # figure 7
}
GAMMA = {
    "full": {},
    "full, gamma- = 1": {"train": {"gamma_neg": 1}},
    "full, gamma- = 4": {"train": {"gamma_neg": 4}},
}
LONGER = ("CoOp + csp", "full", "full, convolutional attention", "full, P-BCE")


@dataclass(frozen=True)
class Part:
    methods: dict[str, dict]
    proportions: list[float]
    epochs: int = 24
    figures: dict[str, list[str]] = field(default_factory=dict)


PARTS = {
    "paper": Part(
        PAPER,
        PROPORTIONS,
        figures={
            "table4": ["CoOp", "CoOp + csp", "CoOp + sd", "full"],
            "figure4": ["full", "full, convolutional attention"],
            "figure7": ["full", "full, P-BCE"],
        },
    ),
    "gamma": Part(GAMMA, PROPORTIONS[::2], figures={"figure8": list(GAMMA)}),
    "longer": Part({method: PAPER[method] for method in LONGER}, PROPORTIONS[:1], epochs=96),
}


def prepare(folder: Path, part: Part) -> Path:
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
    base["train"] |= {"epochs": part.epochs, "lr": 0.01, "warmup_lr": 0.0025}
    (folder / f"{part.epochs}.yaml").write_text(yaml.safe_dump(base))
    sweep = {
        "base": f"{part.epochs}.yaml",
        "test": {"annotations": "data/annotations/instances_test.json"},
        "proportions": part.proportions,
        "seeds": SEEDS,
        "methods": part.methods,
        "figures": part.figures,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return folder / "sweep.yaml"


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for data and runs.")
@click.option("--out", type=click.Path(path_type=Path), help="The docs folder, to write the numbers and curves there.")
@click.option("--part", type=click.Choice(list(PARTS)), default="paper", show_default=True)
def main(work: Path, out: Path | None, part: str) -> None:
    chosen = PARTS[part]
    sweep = read_sweep(prepare(work, chosen))
    results = run_sweep(sweep, work / ("longer" if part == "longer" else "runs"), Console())
    Console(width=200).print(table(results, "embedded data set, hard scenes"))
    print(markdown(results))
    if out is not None:
        report = {
            "environment": {**environment(), "torch": torch.__version__},
            "data": {"train_scenes": TRAIN, "test_scenes": TEST, "difficulty": asdict(HARD)},
            "epochs": chosen.epochs,
            "results": [asdict(result) for result in results],
        }
        (out / "benchmarks" / f"results-{part}.json").write_text(json.dumps(report, indent=1) + "\n")
        for name, methods in sweep.figures.items():
            draw_curves(results, methods, out / "pictures" / f"{name}.png")


if __name__ == "__main__":
    main()
