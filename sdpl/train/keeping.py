"""Which epoch's weights a run keeps as `model.ckpt`, and why (docs/decisions/0051)."""

import math
from collections.abc import Sequence
from typing import Any

from sdpl.data.images import LabelledImages
from sdpl.evaluate.metrics import mean_average_precision_error

MAX_AP_ERROR = 0.05  # standard error of the validation mAP by which an epoch can still be chosen


def too_coarse(val: LabelledImages) -> str | None:
    """Why the validation mAP cannot choose an epoch: too few known positives. None when it can."""
    error, positives = mean_average_precision_error(val.labels), int((val.labels > 0).sum())
    if error <= MAX_AP_ERROR:
        return None
    off = f"its mAP may be off by {100 * error:.0f} points" if positives else "it has no mAP"
    return (
        f"the validation split knows {positives} positives: {off}, too much to choose an epoch by; the last is kept. "
        "Hold out more (data.val, data.val_fraction), or set train.keep: last."
    )


def last_is_kept(keep: str, val: LabelledImages) -> bool:
    """Whether the last epoch is kept, and not the best one. keep: as configured in `train.keep`."""
    return keep == "last" or too_coarse(val) is not None


def is_better(mAP: float, best: float) -> bool:
    """Whether an epoch of this validation mAP takes the place of the best; without any mAP (NaN) the newest does."""
    return not mAP <= best


class Keeper:
    """Tells which checkpoints the newest epoch becomes. best_too: also `best.ckpt`, whatever `model.ckpt` keeps."""

    def __init__(self, keep: str, val: LabelledImages, best_too: bool):
        self.keeps_last, self.best_too = last_is_kept(keep, val), best_too
        self.best_mAP = -math.inf

    def names(self, mAP: float) -> list[str]:
        """Of the files that the epoch of this validation mAP (percent, NaN without any) is written to."""
        is_best = is_better(mAP, self.best_mAP)
        if is_best and math.isfinite(mAP):
            self.best_mAP = mAP
        kept = ["model.ckpt"] if is_best or self.keeps_last else []
        return [*kept, *(["best.ckpt"] if is_best and self.best_too else []), "last.ckpt"]


def kept_epoch(history: Sequence[dict[str, Any]], keeps_last: bool) -> int:
    """The epoch, from 1, whose weights are kept of those in `history`, the rows of `log.csv`."""
    kept, best = len(history), -math.inf
    for row in history if not keeps_last else ():
        if is_better(row["val_mAP"], best):
            kept, best = row["epoch"], row["val_mAP"] if math.isfinite(row["val_mAP"]) else best
    return int(kept)


def why_kept(keep: str, val: LabelledImages) -> str:
    """A sentence for the report. keep: as configured in `train.keep`."""
    if keep == "last":
        return "train.keep: last; the weights of the last epoch are kept."
    refused = too_coarse(val)
    if refused is not None:
        return (
            f"train.keep: best; but {refused} (An epoch is chosen where it is off by at most {_points(MAX_AP_ERROR)}.)"
        )
    error, positives = mean_average_precision_error(val.labels), int((val.labels > 0).sum())
    return (
        "train.keep: best; the epoch with the highest validation mAP is kept. The split knows "
        f"{positives:,} positives: its mAP may be off by {_points(error)}, within the bound of {_points(MAX_AP_ERROR)}."
    )


def _points(error: float) -> str:
    return f"{100 * error:.1f} points"
