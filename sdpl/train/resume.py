"""Whether a stopped run can go on: what is learned must be the same; where and how fast may differ."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.progress import Progress, Report, silent
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config import Config, check_config, differences, flat
from sdpl.train.log import EpochLog

Counted = Annotated[int, Field(ge=0, le=10**12)]
CHECKPOINTS = ("model.ckpt", "last.ckpt")


# Keys that do not change what is learned: the machine, how the work is cut up, what is written, where files lie (the
# data's fingerprint and the weights in the checkpoint hold their content). `unreadable` is the documented way on.
FREE = {
    "data.cache",
    "data.unreadable",
    "data.workers",
    "model.backbone_config",
    "model.weights",
    "model.word_vectors",
    "train.accumulate",
    "train.checkpoint_steps",
    "train.device",
    "train.tensorboard",
    "train.trackers",
    *(f"data.{split}.{key}" for split in ("train", "val") for key in ("annotations", "images", "format")),
}
MOVED = ("model.backbone_config", "model.weights", "model.word_vectors")  # only the folder may differ


def resumable(config: Config, out: Path, fingerprint: str, report: Report = silent) -> dict[str, Any]:
    """The content of `last.ckpt`. What may differ from then is reported.

    Raises UserError listing every difference that changes what is learned, when it is not of this run.
    """
    if not (out / "last.ckpt").exists():
        raise UserError(f"{out} holds no run to go on with (no last.ckpt): leave out --resume to begin one.")
    content = load_checkpoint(out / "last.ckpt")
    state = content["resume"]
    if "best_mAP" not in state:
        raise UserError(
            f"{out}/last.ckpt was written by an older sdpl and cannot go on; it can be exported. Train anew."
        )
    check_state(state, f"{out}/last.ckpt")
    old, new = asdict(check_config(content["config"], "last.ckpt")), asdict(config)
    changed: list[str] = []
    free: list[str] = []
    for line in differences(old, new):
        (free if _is_free(line.split(":")[0], flat(old), flat(new)) else changed).append(line)
    if state["data"] != fingerprint:
        changed.append("data: other images, labels or categories than then")
    if state["history"] and not (out / "model.ckpt").exists():
        raise UserError(f"{out}/model.ckpt, the checkpoint that is kept, is missing: put it back or train anew.")
    if changed:
        raise UserError(f"{out}/last.ckpt was trained with another configuration: {'; '.join(changed)}.")
    for line in free:
        report(Progress(f"going on with other {line}"))
    return content


def _is_free(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a run may go on with another value of this key."""
    if key == "train.epochs":  # the cosine is then that of the new number, from here on
        return bool(new[key] > old[key])
    before, now = old.get(key), new.get(key)
    if key in MOVED:
        return isinstance(before, str) and isinstance(now, str) and Path(before).name == Path(now).name
    return key in FREE


class _Snapshot(BaseModel):
    """The attention after an epoch (`sdpl.train.snapshots`)."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    epoch: Counted
    cases: list[Annotated[list[Counted], Field(min_length=2, max_length=2)]]
    maps: torch.Tensor


class _State(BaseModel):
    """The plain part of what resuming needs; the learner's is checked where its parameters are known."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    learner: dict[str, Any]
    epoch: Counted
    step: Counted
    loss_sum: Annotated[float, Field(allow_inf_nan=False)]
    best_mAP: Annotated[float, Field(le=100)]  # noqa: N815, the field writes it so
    history: list[dict[str, int | float]]
    ap_history: torch.Tensor | None = None
    snapshots: list[_Snapshot] = []
    data: str
    shuffle: torch.Tensor
    rng: torch.Tensor


def check_state(state: dict[str, Any], name: str) -> None:
    """Raise UserError unless a resume state is whole and its parts are what they must be."""
    try:
        checked = _State.model_validate(state)
        for generator_state in (checked.shuffle, checked.rng):
            torch.Generator().set_state(generator_state)
        if any(row.keys() != EpochLog.__dataclass_fields__.keys() for row in checked.history):
            raise ValueError("history has other columns than log.csv")
        if checked.ap_history is not None and not _is_table(checked.ap_history, len(checked.history)):
            raise ValueError("ap_history is no table of at most as many rows as history")
        if any(taken.maps.dim() != 3 or len(taken.maps) != len(taken.cases) for taken in checked.snapshots):
            raise ValueError("snapshots: expected a map for each case")
        if len(checked.history) != checked.epoch:
            raise ValueError(f"history has {len(checked.history)} rows for {checked.epoch} epochs")
    except (ValidationError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"{name}: its resume state is damaged ({reason}). It can be exported; train anew.") from None


def _is_table(values: torch.Tensor, rows: int) -> bool:
    return values.dim() == 2 and len(values) <= rows


def check_learner(state: dict[str, Any], fresh: dict[str, Any], parameters: Sequence[torch.Tensor]) -> None:
    """Raise UserError unless a learner's saved state fits this run's optimiser and parameters.

    fresh: the state of the same learner before its first step; saved hyperparameters other than lr are those.
    """
    try:
        saved, ours = state["optimiser"], fresh["optimiser"]
        if not isinstance(state["steps"], int) or state["steps"] < 0:
            raise ValueError("steps is no count")
        if len(state["trained"]) not in (0, len(parameters)) or bool(state["trained"]) != bool(fresh["trained"]):
            raise ValueError("it averages other parameters")
        of_parameter = [*enumerate(state["trained"])]
        for group, own in zip(saved["param_groups"], ours["param_groups"], strict=True):
            odd = [key for key in own.keys() & group.keys() - {"lr"} if group[key] != own[key]]
            if odd or not own["params"] == group["params"]:
                raise ValueError(f"other {', '.join(sorted(odd) or ['parameters'])}")
        for i, values in saved["state"].items():
            of_parameter += [(i, value) for value in values.values() if value is not None]
        for i, value in of_parameter:
            if not isinstance(value, torch.Tensor) or (value.numel() != 1 and value.shape != parameters[i].shape):
                raise ValueError(f"a value of parameter {i} has another shape")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"last.ckpt: its optimiser is not of this run ({error}). Train anew.") from None


def require_new(out: Path) -> None:
    """Raise UserError when the folder already holds a run."""
    if any((out / name).exists() for name in CHECKPOINTS):
        raise UserError(f"{out} already holds a run: add --resume to go on with it, or choose another --out.")


def fingerprint(*splits: LabelledImages) -> str:
    """SHA-256 of what is trained and validated on: categories, image names and labels, in order."""
    digest = hashlib.sha256(repr(splits[0].categories).encode())
    for data in splits:
        digest.update(repr([path.name for path in data.images]).encode() + data.labels.tobytes())
    return digest.hexdigest()
