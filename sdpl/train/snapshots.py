"""Where the model looks in a few validation images, as `last.ckpt` keeps it for the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sdpl.data.images import LabelledImages, evenly_taken
from sdpl.evaluate.training import Attention
from sdpl.train.features.sources import FeatureMaps
from sdpl.train.model import PartialLabelModel

IMAGES, CATEGORIES = 4, 2  # images, and categories of each that are looked for


def snapshot_epochs(epochs: int) -> set[int]:
    """After which epochs of a run a snapshot is taken, 0 being its start; a handful, however long the run."""
    return {0, 1, round(epochs / 4), round(epochs / 2), epochs}


def shown_cases(val: LabelledImages) -> list[tuple[int, int]]:
    """Rows and columns of known positives: of images spread evenly over those that have any, the first categories."""
    rows = np.flatnonzero((val.labels > 0).any(axis=1))
    chosen = rows[evenly_taken(len(rows), IMAGES)]
    return [(int(row), int(c)) for row in chosen for c in np.flatnonzero(val.labels[row] > 0)[:CATEGORIES]]


@torch.no_grad()
def snapshot(
    epoch: int, model: PartialLabelModel, t: torch.Tensor, val: LabelledImages, features: FeatureMaps
) -> dict[str, Any]:
    """The attention of the shown cases after this epoch, as a checkpoint holds it. t: text features [C,E].

    Images that cannot be read are left out.
    """
    cases = shown_cases(val)
    rows = sorted({row for row, _ in cases})
    maps: dict[tuple[int, int], torch.Tensor] = {}
    for found, f in features.batches([rows]) if rows else ():
        if found:
            attention = model.pool(f, t)[1].float().cpu().reshape(len(found), -1, *model.map_size)  # [B,C,h,w]
            maps |= {(r, c): attention[found.index(r), c].clone() for r, c in cases if r in found}
    stacked = torch.stack(list(maps.values())) if maps else torch.zeros(0, *model.map_size)  # [n,h,w]
    return {"epoch": epoch, "cases": [list(case) for case in maps], "maps": stacked}


def opened(snapshots: Sequence[dict[str, Any]], val: LabelledImages) -> list[Attention]:
    """Snapshots as the report takes them. Cases that are not of this data are left out, as in a damaged file."""
    found = []
    for content in snapshots:
        maps = content["maps"].float().numpy()  # [n,h,w]
        fits = [r < len(val) and c < len(val.categories) for r, c in content["cases"]]
        cases = tuple((r, c) for (r, c), ok in zip(content["cases"], fits, strict=True) if ok)
        found.append(Attention(content["epoch"], cases, maps[np.array(fits, dtype=bool)]))
    return found
