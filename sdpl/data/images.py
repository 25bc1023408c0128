"""Labelled images, whatever file they came from (`sdpl.data.formats`): and what is known of them."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.errors import UserError, listed
from sdpl.text import counted

MEANING = {1: "present", -1: "absent", 0: "unknown"}


@dataclass(frozen=True)
class LabelledImages:
    """Image paths [N], labels int8 [N,C] of 1 present, -1 absent, 0 unknown, and the categories' names [C]."""

    images: tuple[Path, ...]
    labels: np.ndarray
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> "LabelledImages":
        """The images of these rows, in this order."""
        indices = list(indices)
        return LabelledImages(tuple(self.images[i] for i in indices), self.labels[indices], self.categories)

    def with_labels(self, labels: np.ndarray) -> "LabelledImages":
        """The same images with other labels [N,C]."""
        return LabelledImages(self.images, labels, self.categories)

    def without(self, images: Collection[Path]) -> "LabelledImages":
        """All but the images of these paths."""
        return self.subset(i for i, path in enumerate(self.images) if path not in images)


@dataclass(frozen=True)
class LabelCounts:
    """How many labels of one category are known, and what they say."""

    category: str
    positive: int
    negative: int
    unknown: int

    @property
    def known(self) -> int:
        """Positive and negative together."""
        return self.positive + self.negative


def evenly_taken(count: int, most: int) -> list[int]:
    """At most so many of `count` positions, in order, with the first and the last where there are two or more."""
    positions: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return positions


def count_labels(data: LabelledImages) -> list[LabelCounts]:
    """The counts of each category, in the order of the categories."""
    counts = zip(*((data.labels == label).sum(axis=0).tolist() for label in (1, -1, 0)), strict=True)
    return [LabelCounts(name, *row) for name, row in zip(data.categories, counts, strict=True)]


def require_known_labels(data: LabelledImages) -> None:
    """Raise UserError when a category has no known label at all, or nothing is known to be absent: nothing could be
    learned about the one, and from the other that everything is present."""
    unknown = [count.category for count in count_labels(data) if not count.known]
    if unknown:
        raise UserError(
            f"no known label at all for {len(unknown)} of {counted(len(data.categories))} ({listed(unknown)}): "
            "raise data.known_proportion, add labels, or remove the categories."
        )
    if not (data.labels < 0).any():
        raise UserError(
            "no label says that anything is absent: a model would learn that everything is present. "
            "0 and blank mean unknown; write -1 (absent) where it is known."
        )
