"""The paper's comparisons on the embedded data set: hard digit scenes, few images, 10 to 90 % of the labels known.

    python experiments/paper.py --work FOLDER [--out docs]

One command does all of it and goes on after a stop: data, the learning rate of each method (chosen on validation
scenes with seeds of their own), then the runs of every method, proportion and seed, the most telling first. With
--out, what is finished by then becomes docs/benchmarks/results.json and docs/pictures; --report does only that.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import yaml

from sdpl.demo import tiny_clip
from sdpl.demo.run import CONFIG
from sdpl.demo.scenes import HARD, write_coco
from sdpl.files import replace_folder, write_json
from sdpl.progress import Progress, Report
from sdpl.runtime.environment import environment
from sdpl.train.config import Split, SweepConfig
from sdpl.train.sweep import finished, run_sweep
from sdpl.train.sweep_report import Result, draw_curves, markdown, paired

SCENES = {"train": (300, 21), "val": (400, 23), "test": (400, 22)}  # how many, and the seed they are composed with
EPOCHS = 24
LEARNING_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
TUNE_SEEDS, TUNE_PROPORTIONS = (100, 101, 102), (0.2,)

PAPER = yaml.safe_load(Path(__file__).parents[1].joinpath("configs", "coco_sweep.yaml").read_text())
METHODS: dict[str, dict[str, dict[str, Any]]] = PAPER["methods"]
GAMMAS: dict[str, dict[str, dict[str, Any]]] = {  # figure 8; "full" is gamma+ 1, gamma- 2
    f"full, {key} = {value}": {"train": {key: value}}
    for key, own in (("gamma_neg", 2), ("gamma_pos", 1))
    for value in range(5)
    if value != own
}
FIGURES = {
    **PAPER["figures"],
    "figure8-absent": sorted(["full", *(name for name in GAMMAS if "gamma_neg" in name)]),
    "figure8-present": sorted(["full", *(name for name in GAMMAS if "gamma_pos" in name)]),
}
PAIRS = [
    ("full", "CoOp + sd"),
    ("full", "CoOp + csp"),
    ("CoOp + sd", "CoOp"),
    ("CoOp + csp", "CoOp"),
    ("CoOp + sd", "CoOp + csp"),
    ("full", "full, P-BCE"),
    ("full", "full, convolutional attention"),
    ("full", "full, sigmoid masks"),
    ("full", "SSGRL-style"),
    ("full", "linear probe"),
    ("full", "dual prompts"),
    *(("full", name) for name in GAMMAS),
]


@dataclass(frozen=True)
class Stage:
    """A rectangle of runs. The stages are done one after the other, so that any stop leaves whole tables."""

    methods: dict[str, dict[str, dict[str, Any]]]
    proportions: tuple[float, ...]
    seeds: tuple[int, ...]


ODD, EVEN = (0.1, 0.3, 0.5, 0.7, 0.9), (0.2, 0.4, 0.6, 0.8)
CORE = dict(list(METHODS.items())[:6])  # of table 4, figures 4 and 7
STAGES = [
    Stage({"full": {}}, (0.1, 0.3), (0, 1, 2)),
    Stage(CORE, (0.1, 0.3), (0, 1, 2)),
    Stage(CORE, (0.5, 0.9), (0, 1, 2)),
    Stage(METHODS, (0.1, 0.3), (0, 1, 2)),
    Stage(GAMMAS, (0.1, 0.3), (0, 1, 2)),
    Stage(METHODS, (0.5, 0.7, 0.9), (0, 1, 2)),
    Stage(METHODS, ODD, (3, 4)),
    Stage(METHODS, EVEN, (0, 1, 2, 3, 4)),
    Stage(GAMMAS, ODD, (0, 1, 2, 3, 4)),
    Stage(GAMMAS, EVEN, (0, 1, 2, 3, 4)),
]


def prepare(folder: Path) -> Path:
    """Scenes, encoder and configuration; returns the configuration's file."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data").exists():
        with replace_folder(folder / "data", lambda path: False) as data:
            for split, (count, seed) in SCENES.items():
                write_coco(data, split, count, seed=seed, difficulty=HARD)
    tiny_clip.unpack_weights(folder / "tiny_clip.safetensors")
    shutil.copyfile(tiny_clip.CONFIG, folder / "tiny_clip.json")
    base = yaml.safe_load(CONFIG.read_text())
    base["data"]["cache"] = "cache"
    base["model"]["joint_dim"] = 128
    base["train"]["epochs"] = EPOCHS
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(base))
    return path


def sweep_of(work: Path, stage: Stage, split: str) -> SweepConfig:
    test = Split(annotations=str(work / "data" / "annotations" / f"instances_{split}.json"))
    base = str(work / "base.yaml")
    return SweepConfig(base=base, test=test, methods=stage.methods, proportions=stage.proportions, seeds=stage.seeds)


def at_rate(changes: dict[str, dict[str, Any]], lr: float) -> dict[str, dict[str, Any]]:
    """The same method with a learning rate, the warm-up's a quarter of it."""
    return {**changes, "train": {**changes.get("train", {}), "lr": lr, "warmup_lr": lr / 4}}


def tuning(work: Path) -> dict[float, SweepConfig]:
    """One sweep for each learning rate, measured on the validation scenes."""
    stages = {
        lr: Stage({n: at_rate(c, lr) for n, c in METHODS.items()}, TUNE_PROPORTIONS, TUNE_SEEDS)
        for lr in LEARNING_RATES
    }
    return {lr: sweep_of(work, stage, "val") for lr, stage in stages.items()}


def tuned(results: dict[float, Sequence[Result]]) -> dict[str, dict[float, float]]:
    """Mean validation mAP by method and learning rate."""
    return {
        name: {lr: float(np.mean([r.mAP for r in rows if r.method == name])) for lr, rows in results.items()}
        for name in METHODS
    }


def stages(chosen: dict[str, float]) -> list[Stage]:
    """The stages, each method at its learning rate; the exponents' sweep at that of "full"."""
    return [
        replace(stage, methods={n: at_rate(c, chosen.get(n, chosen["full"])) for n, c in stage.methods.items()})
        for stage in STAGES
    ]


def write_report(work: Path, out: Path, rates: dict[str, dict[float, float]], todo: list[Stage]) -> None:
    """docs/benchmarks/results.json, the curves, and the tables as Markdown on the terminal: of every method and
    proportion that all seeds of a stage have finished."""
    results: list[Result] = []
    content: dict[str, Any]
    for stage in todo:
        rows = finished(sweep_of(work, stage, "test"), work / "runs")
        count = Counter((row.method, row.proportion) for row in rows)
        whole = [row for row in rows if count[row.method, row.proportion] == len(stage.seeds)]
        results += [row for row in whole if row not in results]
    results.sort(key=lambda r: (r.method, r.proportion, r.seed))
    pairs = [
        {"method": a, "minus": b, "known": label, "mAP": mean, "ci95": half, "seeds": n}
        for a, b in PAIRS
        for label, rows in by_proportion(results, a, b)
        for mean, half, n in [paired(rows, a, b)]
    ]
    content = {
        "environment": {**environment(), "torch": torch.__version__},
        "data": {"scenes": SCENES, "difficulty": asdict(HARD), "epochs": EPOCHS},
        "tuning": {"seeds": TUNE_SEEDS, "proportions": TUNE_PROPORTIONS, "mAP": rates},
        "results": [asdict(result) for result in results],
        "paired": pairs,
    }
    (out / "benchmarks" / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    for name, methods in FIGURES.items():
        shown = [m for m in methods if any(r.method == m for r in results)]
        if len(shown) > 1:
            draw_curves(rectangle(results, shown), shown, out / "pictures" / f"{name}.png")
            print(f"\n{name}\n\n{markdown(rectangle(results, shown))}")
    print_epochs(results)
    for row in pairs:
        interval = f"{row['mAP']:+.1f} ± {row['ci95']:.1f} ({row['seeds']} seeds)"
        print(f"{row['method']} - {row['minus']}, {row['known']}: {interval}")


def print_epochs(results: Sequence[Result]) -> None:
    """What keeping the best epoch would give against the last one."""
    for proportion in sorted({r.proportion for r in results}):
        gaps = [r.mAP_best - r.mAP_last for r in results if r.proportion == proportion]
        print(
            f"{proportion:.0%} known: best epoch - last epoch {np.mean(gaps):+.2f} mAP on average, "
            f"{min(gaps):+.1f} to {max(gaps):+.1f}, {len(gaps)} runs"
        )


def by_proportion(results: Sequence[Result], a: str, b: str) -> list[tuple[str, list[Result]]]:
    """The two methods' results over all proportions, and at each of them."""
    rows = rectangle(results, [a, b])
    proportions = sorted({r.proportion for r in rows})
    split = [(f"{p:.0%}", [r for r in rows if r.proportion == p]) for p in proportions]
    return [("all", rows), *split] if len({r.method for r in rows}) == 2 else []


def rectangle(results: Sequence[Result], methods: Sequence[str]) -> list[Result]:
    """The results of these methods at the proportions and seeds that all of them have."""
    found = [{(r.proportion, r.seed) for r in results if r.method == method} for method in methods]
    common = set.intersection(*found)
    seeds = {p: {s for q, s in common if q == p} for p, _ in common}
    shared = set.intersection(*seeds.values()) if seeds else set()
    rows = [r for m in methods for r in results if r.method == m]
    return [r for r in rows if r.proportion in seeds and r.seed in shared]


def say(progress: Progress) -> None:
    if progress.total is None:
        print(progress, flush=True)


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder for data and runs.")
@click.option("--out", type=click.Path(path_type=Path), help="The docs folder, to write the numbers and curves there.")
@click.option("--report", "only_report", is_flag=True, help="Write what is finished, run nothing.")
def main(work: Path, out: Path | None, only_report: bool) -> None:
    work = work.resolve()
    prepare(work)
    report: Report = say
    tunings = tuning(work)
    rates = tuned({lr: run_sweep(sweep, work / f"tune-{lr:g}", report) for lr, sweep in tunings.items()})
    chosen = {name: max(by_rate, key=lambda lr: by_rate[lr]) for name, by_rate in rates.items()}
    write_json(work / "chosen.json", chosen)
    todo = stages(chosen)
    for stage in () if only_report else todo:
        run_sweep(sweep_of(work, stage, "test"), work / "runs", report)
    if out is not None:
        write_report(work, out, rates, todo)


if __name__ == "__main__":
    main()
