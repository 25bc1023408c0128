"""Sweeps: the same training for every method, proportion of known labels and seed.

A run that is finished left a `result.json` and is not repeated; one that was stopped goes on from its checkpoint.
"""

import copy
import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError, listed
from sdpl.evaluate.evaluation import Evaluation, evaluate
from sdpl.files import only_one_run, write_json
from sdpl.progress import Progress, Report, silent
from sdpl.train.checkpoint import load_checkpoint, restore_model
from sdpl.train.config import Config, SweepConfig, check_config, differences
from sdpl.train.config_files import read_values
from sdpl.train.distributed import choose_device, world_size
from sdpl.train.features.sources import FeatureSource
from sdpl.train.loop import train
from sdpl.train.model import PartialLabelModel
from sdpl.train.splits import read_split
from sdpl.train.sweep_report import Result

RESULT = "result.json"
LONGEST_NAME = 100


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    method: str
    proportion: float
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        return f"{_slug(self.method)}/{self.proportion:g}-seed{self.seed}"


def runs(sweep: SweepConfig) -> list[Run]:
    """All runs of a sweep, every configuration checked. Raises UserError naming the method and its wrong key."""
    base = read_values(Path(sweep.base))
    nameless = [name for name in sweep.methods if not 0 < len(_slug(name)) <= LONGEST_NAME]
    if nameless:
        names = listed(map(repr, nameless))
        raise UserError(f"{names}: a method's name is a folder's: it needs 1 to {LONGEST_NAME} letters or digits.")
    result = []
    for method, changes in sweep.methods.items():
        for proportion in sweep.proportions:
            for seed in sweep.seeds:
                values = copy.deepcopy(base)
                known = {"known_proportion": proportion, "mask_seed": seed}
                for section, change in (*changes.items(), ("data", known), ("train", {"seed": seed})):
                    if values.get(section) is None:
                        values[section] = {}
                    if not isinstance(values[section], dict):
                        raise UserError(f"{sweep.base}: {section} has no keys of its own.")
                    values[section].update(change)
                result.append(Run(method, proportion, seed, check_config(values, f"method {method!r}")))
    folders = {run.folder for run in result}
    if len(folders) < len(result):
        raise UserError("two methods of the sweep have names that differ in signs or case only: rename one.")
    return result


def run_sweep(sweep: SweepConfig, out: Path, report: Report = silent) -> list[Result]:
    """Do every run that is not finished yet, into folders of `out`; returns all results.

    Raises UserError for a wrong configuration before anything is run, and for an `out` with results of other settings.
    """
    if world_size() > 1:
        raise UserError("a sweep runs in one process: start it without torchrun (several sweeps may share data.cache).")
    with only_one_run(out):
        return _run_all(runs(sweep), sweep, out, report)


def _run_all(todo: list[Run], sweep: SweepConfig, out: Path, report: Report) -> list[Result]:
    done = {run.folder: result for run in todo if (result := _finished(run, out / run.folder)) is not None}
    report(Progress(f"{len(todo)} runs, {len(done)} of them finished before"))
    for number, run in enumerate(todo, 1):
        if run.folder in done:
            continue
        result = _do(run, sweep, out / run.folder, report)
        done[run.folder] = result
        report(
            Progress(
                f"{number}/{len(todo)}  {run.method}, {run.proportion:.0%} of the labels, seed {run.seed}: "
                f"mAP {result.mAP:.2f}  OF1 {result.OF1:.2f}  CF1 {result.CF1:.2f}"
            )
        )
    return [done[run.folder] for run in todo]


def finished(sweep: SweepConfig, out: Path) -> list[Result]:
    """The results that are already in the folder `out`, in the order of the runs. Raises UserError as `run_sweep`."""
    return [result for run in runs(sweep) if (result := _finished(run, out / run.folder)) is not None]


def _finished(run: Run, folder: Path) -> Result | None:
    """The result of an earlier sweep into this folder, if there is one."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_bytes())
        changed = differences(content.pop("config"), _plain(run.config))
        result = Result(**content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is damaged; delete it, the run will be repeated.") from None
    if changed:
        raise UserError(f"{path} is of another configuration ({'; '.join(changed)}): choose another --out.")
    return result


def _do(run: Run, sweep: SweepConfig, folder: Path, report: Report) -> Result:
    """Train, measure the kept, the best and the last checkpoint on the test split, and write the result."""
    resume = (folder / "last.ckpt").exists()
    kept = train(run.config, folder, resume, report, epoch_lines=False, best_too=True)
    measured: dict[int, Evaluation] = {}  # by epoch: two of the three checkpoints are of the same
    epochs = {}
    for path in (kept, folder / "best.ckpt", folder / "last.ckpt"):
        content = load_checkpoint(path)
        epoch = epochs[path.name] = content["resume"]["epoch"]
        if epoch not in measured:
            config, model = restore_model(content, str(path))
            test = read_split(sweep.test, model.categories)
            measured[epoch] = evaluate(score(model, config, test, report), test)
    best, last = (measured[epochs[name]] for name in ("best.ckpt", "last.ckpt"))
    own = measured[epochs[kept.name]]
    metrics = (own.mAP, own.f1["OF1"], own.f1["CF1"], own.mAP_voc2012, best.mAP, last.mAP)
    result = Result(run.method, run.proportion, run.seed, *metrics)
    write_json(folder / RESULT, {**asdict(result), "config": _plain(run.config)})
    if not sweep.keep_checkpoints:
        for path in folder.glob("*.ckpt"):
            path.unlink()
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    return result


@torch.no_grad()
def score(model: PartialLabelModel, config: Config, data: LabelledImages, report: Report = silent) -> np.ndarray:
    """Scores [N,C] of a split by a trained model, with maps from the configuration's cache if it names one."""
    device = choose_device(config.train.device)
    model = model.to(device).eval()
    t = model.text_features()  # [C,E]
    scores = np.zeros(data.labels.shape, dtype=np.float32)  # [N,C]
    size = config.train.batch_size
    groups = (np.arange(i, min(i + size, len(data))) for i in range(0, len(data), size))
    for rows, f in FeatureSource(model, config, device, report).plain(data).batches(groups):
        scores[rows] = model.probabilities(model.pool(f, t)[0]).cpu().numpy()
    return scores


def _slug(name: str) -> str:
    """A method's name as a folder's: letters and digits, with dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _plain(config: Config) -> dict[str, Any]:
    """As JSON gives it back, so that two configurations can be compared."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values
