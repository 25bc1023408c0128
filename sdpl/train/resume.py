"""Whether a stopped run can go on: the same configuration, the same data, its checkpoints in place."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.config import Config, check_config, differences

CHECKPOINTS = ("model.ckpt", "last.ckpt")


def resumable(config: Config, out: Path, fingerprint: str) -> dict[str, Any]:
    """The content of `last.ckpt`. Raises UserError listing every difference when it is not of this run."""
    content = load_checkpoint(out / "last.ckpt")
    state = content["resume"]
    if "best_mAP" not in state:
        raise UserError(
            f"{out}/last.ckpt was written by an older sdpl and cannot go on; it can be exported. Train anew."
        )
    changed = differences(asdict(check_config(content["config"], "last.ckpt")), asdict(config))
    if state["data"] != fingerprint:
        changed.append("data: other images, labels or categories than then")
    if state["history"] and not (out / "model.ckpt").exists():
        raise UserError(f"{out}/model.ckpt, the checkpoint that is kept, is missing: put it back or train anew.")
    if changed:
        raise UserError(f"{out}/last.ckpt was trained with another configuration: {'; '.join(changed)}.")
    return content


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
