"""Whether a stopped run can go on: what is learned must be the same; where and how fast may differ."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.progress import Progress, Report, silent
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config import Config, check_config, differences, flat

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
    content = load_checkpoint(out / "last.ckpt")
    state = content["resume"]
    if "best_mAP" not in state:
        raise UserError(
            f"{out}/last.ckpt was written by an older sdpl and cannot go on; it can be exported. Train anew."
        )
    old, new = asdict(check_config(content["config"], "last.ckpt")), asdict(config)
    changed: list[str] = []
    free: list[str] = []
    for line in differences(old, new):
        (free if _is_free(line.split(":")[0], flat(old), flat(new)) else changed).append(line)
    if state["data"] != fingerprint:
        changed.append("data: other images, labels or categories than then")
    if state["history"] and not (out / "model.ckpt").exists():
        raise UserError(f"{out}/model.ckpt, the best checkpoint, is missing: put it back or train anew.")
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
