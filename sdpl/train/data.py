"""Labelled images, whatever file they came from (`sdpl.train.formats`): what is known of them, and batches."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sdpl.errors import UserError, listed
from sdpl.preprocess import preprocess


@dataclass(frozen=True)
class LabelledImages:
    """Image paths [N], labels int8 [N,C] of 1 present, -1 absent, 0 unknown, and the categories' names [C]."""

    images: tuple[Path, ...]
    labels: np.ndarray
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> "LabelledImages":
        indices = list(indices)
        return LabelledImages(tuple(self.images[i] for i in indices), self.labels[indices], self.categories)

    def with_labels(self, labels: np.ndarray) -> "LabelledImages":
        return LabelledImages(self.images, labels, self.categories)

    def without(self, images: Collection[Path]) -> "LabelledImages":
        return self.subset(i for i, path in enumerate(self.images) if path not in images)


class Unreadable:
    """What becomes of images that cannot be read while a run goes on.

    "stop" raises the UserError of the first, with `mend` behind it; "skip" says each once and goes on without it.
    `images` are the skipped.
    """

    def __init__(self, policy: str = "stop", say: Callable[[str], None] = lambda line: None, mend: str = ""):
        self.policy, self.say, self.mend = policy, say, mend
        self.images: set[Path] = set()

    def __call__(self, image: Path, error: UserError) -> None:
        if self.policy == "stop":
            raise UserError(f"{error} {self.mend}") from None
        if image not in self.images:
            self.images.add(image)
            self.say(f"skipped: {error}")


def batches(
    data: LabelledImages,
    image_size: int,
    batch_size: int,
    workers: int | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images uint8 [B,S,S,3] and labels int8 [B,C], in the order of the data; the last batch may be smaller.

    Without `unreadable`, an image that cannot be read raises its UserError. An empty batch is left out.
    """
    groups = [range(start, min(start + batch_size, len(data))) for start in range(0, len(data), batch_size)]
    load = partial(preprocess, image_size=image_size)
    for rows, images in decoded(groups, data.images, load, workers, unreadable):
        if rows:
            yield images, data.labels[rows]


def decoded(
    groups: Iterable[Sequence[int]],
    paths: Sequence[Path],
    load: Callable[[Path], np.ndarray],
    workers: int | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """For each group of rows: those that could be read, and their images as `load` gives them, uint8 [B,S,S,3].

    The next group is decoded in threads (Pillow releases the interpreter lock) while this one is used.
    """
    unreadable = unreadable or Unreadable()
    with ThreadPoolExecutor(workers) as pool:

        def submit(group: Sequence[int]) -> list[tuple[int, Future]]:
            return [(int(row), pool.submit(load, paths[row])) for row in group]

        def finish(group: list[tuple[int, Future]]) -> tuple[list[int], np.ndarray]:
            rows, images = [], []
            for row, future in group:
                try:
                    images.append(future.result())
                except UserError as error:
                    unreadable(paths[row], error)
                else:
                    rows.append(row)
            return rows, np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8)

        ahead = None
        for group in groups:
            current, ahead = ahead, submit(group)
            if current is not None:
                yield finish(current)
        if ahead is not None:
            yield finish(ahead)


@dataclass(frozen=True)
class LabelCounts:
    """How many labels of one category are known, and what they say."""

    category: str
    positive: int
    negative: int
    unknown: int

    @property
    def known(self) -> int:
        return self.positive + self.negative


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
            f"no known label at all for {len(unknown)} of {len(data.categories)} categories ({listed(unknown)}): "
            "raise data.known_proportion, add labels, or remove the categories."
        )
    if not (data.labels < 0).any():
        raise UserError(
            "no label says that anything is absent: a model would learn that everything is present. "
            "0 and blank mean unknown; write -1 (absent) where it is known."
        )
