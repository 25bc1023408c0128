"""`model.ckpt`: one file that holds everything export and resuming need, loadable with weights_only=True."""

import pickle
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdpl import __version__
from sdpl.errors import UserError
from sdpl.evaluate.thresholds import DEFAULT
from sdpl.files import replace_file
from sdpl.train.config import Config, check_config
from sdpl.train.contents import HASHES, check_contents, hashes, require_stored
from sdpl.train.model import PartialLabelModel

KIND = "sdpl.checkpoint"
FORMAT_VERSION = 2  # 1 had no hashes and is still read
NEEDED = ("config", "clip_config", "categories", "words", "state", "thresholds", "proof_images", "resume")


def save_checkpoint(
    path: Path,
    config: Config,
    model: PartialLabelModel,
    proof_images: torch.Tensor,
    resume: dict[str, Any],
    thresholds: Iterable[float] | None = None,
) -> None:
    """Write atomically. proof_images: uint8 [N,S,S,3], held-out images that the export is verified on.

    resume: optimiser, schedule, epoch, best metric and random state, of tensors and plain values.
    thresholds: one per category, 0.5 by default.
    """
    content = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "sdpl_version": __version__,
        "config": asdict(config),
        "clip_config": model.clip_config,
        "categories": list(model.categories),
        "words": model.words,
        "state": model.state_dict(),
        "thresholds": [DEFAULT] * len(model.categories) if thresholds is None else [float(x) for x in thresholds],
        "proof_images": proof_images,
        "resume": resume,
    }
    content[HASHES] = hashes(content)
    with replace_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's zip writer reports a full disk this way
            reason = str(error).splitlines()[0]
            raise UserError(f"cannot write {path}: {reason}; nothing was changed there. Free space.") from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU. Executes nothing from the file.

    Raises UserError when it is missing, truncated, damaged, not of sdpl, of a newer version, or holds code or anything
    else that a checkpoint does not (`sdpl.train.contents`).
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no file" if path.exists() else "no such checkpoint"
        raise UserError(f"{path}: {what}; sdpl-train writes model.ckpt into its --out folder.")
    require_stored(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it finds in foreign files; the errors below say it in one line
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: is no checkpoint, or holds code instead of tensors and plain values; it is not loaded."
        ) from None
    except Exception:  # torch raises of any kind for damaged files; the file is the only thing that can be wrong here
        raise UserError(f"{path}: is truncated or not a checkpoint; copy it again or train again.") from None
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise UserError(f"{path}: was not written by sdpl-train.")
    version = content.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{path}: its format version is {version}, this sdpl reads up to {FORMAT_VERSION}: update sdpl."
        )
    missing = [key for key in NEEDED if key not in content]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}; it was not written whole by sdpl-train.")
    check_contents(content, str(path), has_hashes=version >= 2)
    return content


def restore_model(content: dict[str, Any], name: str = "checkpoint") -> tuple[Config, PartialLabelModel]:
    """The configuration and the model of a checkpoint's content, in eval mode on the CPU."""
    config = check_config(content["config"], name)
    try:
        model = PartialLabelModel(config.model, tuple(content["categories"]), content["clip_config"], content["words"])
    except UserError:
        raise
    except Exception as error:  # open_clip raises of any kind for a configuration that it cannot build
        raise UserError(f"{name}: its model cannot be built ({last_line(error)}).") from None
    load_state(model, content, name)
    return config, model.eval()


def load_state(model: PartialLabelModel, content: dict[str, Any], name: str) -> None:
    """The weights of a checkpoint's content into a model. Raises UserError when they are of another."""
    try:
        model.load_state_dict(content["state"])
    except RuntimeError as error:
        raise UserError(f"{name}: its weights do not fit its configuration ({last_line(error)}).") from None


def last_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1].strip()
