"""Reading the images of labelled data, and what becomes of those that cannot be read."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sdpl.data.images import LabelledImages
from sdpl.errors import UserError
from sdpl.pipeline import Decoder, batched
from sdpl.preprocess import preprocess
from sdpl.progress import Progress, Report, silent


class Unreadable:
    """What becomes of images that cannot be read while a run goes on.

    "stop" raises the UserError of the first, with `fix` behind it; "skip" reports each once and goes on without it.
    `images` are the skipped.
    """

    def __init__(self, policy: str = "stop", report: Report = silent, fix: str = ""):
        self.policy, self.report, self.fix = policy, report, fix
        self.images: set[Path] = set()

    def __call__(self, image: Path, error: UserError) -> None:
        if self.policy == "stop":
            raise UserError(f"{error} {self.fix}") from None
        if image not in self.images:
            self.images.add(image)
            self.report(Progress(f"skipped: {error}"))


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
    load = partial(preprocess, image_size=image_size)
    groups = batched(range(len(data)), batch_size)
    for rows, images in read_groups(groups, data.images, load, workers, unreadable):
        if rows:
            yield images, data.labels[rows]


def read_groups(
    groups: Iterable[Collection[int]],
    paths: Sequence[Path],
    load: Callable[[Path], np.ndarray],
    workers: int | None = None,
    unreadable: Unreadable | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """For each group of rows: those that could be read, and their images as `load` gives them, uint8 [B,S,S,3].

    workers: decoding threads; the next groups are decoded while this one is used (`sdpl.pipeline`).
    """
    unreadable = unreadable or Unreadable()
    with Decoder(workers) as decoder:
        for group in decoder.groups(groups, lambda row: load(paths[row])):
            rows, images = [], []
            for row, image in group:
                if isinstance(image, UserError):
                    unreadable(paths[row], image)
                else:
                    rows.append(int(row))
                    images.append(image)
            yield rows, np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8)
