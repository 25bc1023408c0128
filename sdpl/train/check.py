"""What `sdpl-data check` finds out about label files before a GPU is spent on them. Needs no torch."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.errors import UserError
from sdpl.preprocess import ImageSource, preprocess
from sdpl.train.data import LabelCounts, LabelledImages, count_labels
from sdpl.train.formats import read_labels

THUMBNAIL = 8  # cells on a side
SAME = 4.0  # of 255: root mean square between the thumbnails of two copies of one picture; docs/decisions/0021


@dataclass(frozen=True)
class Finding:
    """Something to look at in one split, or in several when `split` is empty. A problem makes the check fail, a warning
    does not. `items` are all that it was found of."""

    is_problem: bool
    what: str
    split: str
    items: tuple[str, ...]


@dataclass(frozen=True)
class DataCheck:
    counts: dict[str, list[LabelCounts]]  # by split
    images: dict[str, int]
    findings: list[Finding]

    @property
    def problems(self) -> int:
        return sum(finding.is_problem for finding in self.findings)


def read_splits(sources: list[Path], images: list[Path], format: str) -> dict[str, LabelledImages]:
    """The splits to check, by name: one training configuration (.yaml), or label files, whose categories must agree.

    images: one folder for each label file, or none. The first file defines the categories and their order.
    """
    if len(sources) == 1 and sources[0].suffix in (".yaml", ".yml"):
        from sdpl.train.config import read_config

        if images or format != "auto":
            raise UserError(
                f"{sources[0]}: says itself where its images are and of what format; leave out the options."
            )
        data = read_config(sources[0]).data
        named = [(s.annotations, s.images, s.format) for s in (data.train, data.val) if s is not None]
        categories = data.categories
    else:
        if len(images) not in (0, len(sources)):
            raise UserError(f"--images is given {len(images)} times for {len(sources)} label files: once for each.")
        named = [(str(s), i, format) for s, i in zip(sources, images or [None] * len(sources), strict=True)]
        categories = None
    splits: dict[str, LabelledImages] = {}
    for path, folder, form in named:
        if path in splits:
            raise UserError(f"{path} is named twice: a split shares every image with itself.")
        splits[path] = read_labels(path, folder, form, categories, require_images=False)
        categories = splits[path].categories
    return splits


def check(
    splits: dict[str, LabelledImages],
    advance: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda step: None,
) -> DataCheck:
    """Count the labels and look at every image; `advance` is called once per image, `say` with each step begun."""
    say("opening the images")
    counts = {name: count_labels(data) for name, data in splits.items()}
    places = [(split, path) for split, data in splits.items() for path in data.images]
    thumbnails, unreadable = _thumbnails([path for _, path in places], advance)
    findings = []
    for name in splits:
        reasons = tuple(reason for i, reason in unreadable.items() if places[i][0] == name)
        findings.append(Finding(True, "images that cannot be read", name, reasons))
    say("comparing the images")
    readable = [place for i, place in enumerate(places) if i not in unreadable]
    findings += [*_copies(readable, thumbnails), *_one_sided(counts)]
    images = {name: len(data) for name, data in splits.items()}
    return DataCheck(counts, images, [finding for finding in findings if finding.items])


def _thumbnails(paths: list[Path], advance: Callable[[], None]) -> tuple[np.ndarray, dict[int, str]]:
    """Thumbnails float32 [n,192] of the readable images, and what is wrong with the others, by their position."""

    def read(path: Path) -> np.ndarray | UserError:
        try:
            return thumbnail(path)
        except UserError as error:
            return error

    found, unreadable = [], {}
    with ThreadPoolExecutor() as pool:
        for i, result in enumerate(pool.map(read, paths)):
            if isinstance(result, UserError):
                unreadable[i] = str(result)
            else:
                found.append(result)
            advance()
    return np.array(found, dtype=np.float32).reshape(len(found), 3 * THUMBNAIL**2), unreadable


def thumbnail(image: ImageSource) -> np.ndarray:
    """The mean colours of 8x8 cells, float32 [192]: nearly the same for every copy of a picture."""
    cells = preprocess(image, 8 * THUMBNAIL).reshape(THUMBNAIL, 8, THUMBNAIL, 8, 3)
    return cells.mean(axis=(1, 3), dtype=np.float32).ravel()


def groups_of_copies(thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """The positions of the pictures of each group of copies: thumbnails [n,192] closer than `SAME` to the next."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    if len(thumbnails) < 2:
        return
    radius = SAME * np.sqrt(thumbnails.shape[1])
    neighbours = NearestNeighbors(radius=radius, algorithm="brute").fit(thumbnails)
    _, group = connected_components(neighbours.radius_neighbors_graph(), directed=False)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        if len(members) > 1:
            yield members


def _copies(places: list[tuple[str, Path]], thumbnails: np.ndarray) -> Iterator[Finding]:
    """Copies of a picture across splits, where they spoil every measurement, and within one."""
    groups: dict[str, list[str]] = {"": []}
    for members in groups_of_copies(thumbnails):
        splits = {places[i][0] for i in members}
        split = splits.pop() if len(splits) == 1 else ""
        groups.setdefault(split, []).append(" = ".join(str(places[i][1]) for i in members))
    yield Finding(True, "times the same picture in different splits", "", tuple(groups.pop("")))
    for split, items in groups.items():
        yield Finding(False, "times the same picture more than once", split, tuple(items))


def _one_sided(counts: dict[str, list[LabelCounts]]) -> Iterator[Finding]:
    """Categories with nothing to learn or to measure. That nothing at all is known is a problem in the first split,
    the training set."""
    for number, (split, rows) in enumerate(counts.items()):
        for is_problem, what, found in (
            (number == 0, "categories without any known label", [r for r in rows if not r.known]),
            (False, "categories without a known positive", [r for r in rows if r.known and not r.positive]),
            (False, "categories without a known negative; if 0 was meant as absent, write -1",
             [r for r in rows if r.known and not r.negative]),
        ):  # fmt: skip
            yield Finding(is_problem, what, split, tuple(row.category for row in found))
