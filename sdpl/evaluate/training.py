"""A training run as its report takes it: plain numbers, whoever trained. Needs neither torch nor what draws."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sdpl.data.images import LabelledImages

AP = dict[str, float | None]  # of each category in percent; None without a known positive


@dataclass(frozen=True)
class Epoch:
    """One epoch's numbers. mAP in percent on the validation split, NaN where it has no known positive."""

    epoch: int  # from 1
    lr: float
    loss: float
    mAP: float  # noqa: N815, the field writes it so


@dataclass(frozen=True)
class Attention:
    """Where the model looks after an epoch (0: before the first): cases (row of the validation split, column of the
    category) and a map [h,w] of each, which adds up to 1."""

    epoch: int
    cases: tuple[tuple[int, int], ...]
    maps: np.ndarray  # [n,h,w]


@dataclass(frozen=True)
class Training:
    """A run as its page shows it. kept: the epoch whose weights are the result, and `reason` why. error: standard error
    of the validation mAP in points, NaN without a mAP. ap: of each epoch, an empty one where it is not known. facts:
    what the run is made of, a line each. took: the time of all epochs, in words."""

    name: str
    planned: int
    epochs: Sequence[Epoch]
    ap: Sequence[AP]
    kept: int
    reason: str
    error: float
    took: str
    facts: Sequence[str]
    train: LabelledImages
    val: LabelledImages
    attention: Sequence[Attention]
