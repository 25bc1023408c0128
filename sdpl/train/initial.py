"""A new run that starts from the weights of another: --init CHECKPOINT."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sdpl.errors import UserError, listed
from sdpl.train.checkpoint import load_checkpoint
from sdpl.train.model import PartialLabelModel


def initialise(model: PartialLabelModel, path: Path) -> Iterator[str]:
    """Give the model the weights of a checkpoint; yields lines about what it took.

    The categories may differ: those whose names match keep their prompts and word vectors, the others start as new.
    Raises UserError, before anything is changed, when the checkpoint's model has another structure.
    """
    content = load_checkpoint(path)
    if content["clip_config"] != model.clip_config:
        raise UserError(f"--init {path}: has another backbone than the configuration: take its model section.")
    names: list[str] = content["categories"]
    place = {name: row for row, name in enumerate(names)}
    pairs = [(row, place[name]) for row, name in enumerate(model.categories) if name in place]
    state = _fitted(model, content["state"], len(names), pairs, path)
    if not any(key.startswith(("decoupling.", "prompts.")) for key in state):
        raise UserError(f"--init {path}: holds nothing that this configuration trains: take its model section.")
    model.load_state_dict(model.state_dict() | state)
    yield f"starts from {path}: {len(pairs)} of {len(model.categories)} categories keep their prompts and word vectors"
    new = [name for name in model.categories if name not in place]
    if new:
        yield f"new categories: {listed(new)}"


def _fitted(
    model: PartialLabelModel, given: dict[str, Any], count: int, pairs: list[tuple[int, int]], path: Path
) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors in the shapes of the model; of those with a row for each category, the matching rows.

    count: categories of the checkpoint. pairs: (row in the model, row in the checkpoint).
    """
    own, fitted = model.state_dict(), {}
    for name, tensor in given.items():
        if name not in own:
            raise UserError(
                f"--init {path}: has {name}, which this configuration's model has not: take its model section."
            )
        now = own[name]
        per_category = len(now.shape) > 0 and now.shape[0] == len(model.categories) and _is_per_category(name)
        if per_category and tensor.shape[0] == count and tensor.shape[1:] == now.shape[1:]:
            now = now.clone()
            for here, there in pairs:
                now[here] = tensor[there].to(now)
            fitted[name] = now
        elif tensor.shape == now.shape:
            fitted[name] = tensor
        else:
            shapes = f"{list(tensor.shape)} there, {list(now.shape)} here"
            raise UserError(f"--init {path}: {name} has another shape ({shapes}): take its model section.")
    return fitted


def _is_per_category(name: str) -> bool:
    return name in ("words", "prompts.context") or name.startswith(("decoupling.convolution.", "decoupling.scale"))
