"""What `sdpl-data check` finds out about label files before a GPU is spent on them. Needs no torch."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.data.formats import read_labels
from sdpl.data.formats.table import csv_rows, jsonl_rows
from sdpl.data.images import MEANING, LabelCounts, LabelledImages, count_labels
from sdpl.errors import UserError
from sdpl.pipeline import Decoder, batched
from sdpl.preprocess import ImageSource, preprocess
from sdpl.progress import Report, Steps, silent

THUMBNAIL = 8  # cells on a side
GROUP = 16  # images handed to the decoding threads at a time
EXAMPLES, OF_EACH = 24, 4  # items of a finding that have images as examples, and images of each
SAME = 4.0  # of 255: root mean square between the thumbnails of two copies of one picture; docs/decisions/0021


@dataclass(frozen=True)
class Finding:
    """Something to look at in one split, or in several when `split` is empty. A problem makes the check fail, a warning
    does not. `items` are all that it was found of; `images` are paths that show the first of them, for each a few, and
    `caption` says what they have in common."""

    is_problem: bool
    what: str
    split: str
    items: tuple[str, ...]
    images: tuple[tuple[str, ...], ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class DataCheck:
    """What `check` counted and found. images: how many, by split."""

    counts: dict[str, list[LabelCounts]]  #: by split
    images: dict[str, int]
    findings: list[Finding]

    @property
    def problems(self) -> int:
        """How many findings make the check fail."""
        return sum(finding.is_problem for finding in self.findings)


def read_splits(sources: list[Path], images: list[Path], format: str) -> dict[str, LabelledImages]:
    """The splits of these label files, by name; their categories must agree.

    images: one folder for each label file, or none. The first file defines the categories and their order.
    """
    if len(images) not in (0, len(sources)):
        raise UserError(f"--images is given {len(images)} times for {len(sources)} label files: once for each.")
    folders: Sequence[Path | None] = images or [None] * len(sources)
    return read_named([(str(s), i, format) for s, i in zip(sources, folders, strict=True)])


def read_named(
    named: Sequence[tuple[str, str | Path | None, str]],
    categories: tuple[str, ...] | None = None,
    values: dict[float, int] | None = None,
) -> dict[str, LabelledImages]:
    """The splits by name, each of (label file, images folder, format); images that are missing are no error here."""
    splits: dict[str, LabelledImages] = {}
    for path, folder, form in named:
        if path in splits:
            raise UserError(f"{path} is named twice: a split shares every image with itself.")
        splits[path] = read_labels(path, folder, form, categories, require_images=False, values=values)
        categories = splits[path].categories
    return splits


def check(
    splits: dict[str, LabelledImages],
    report: Report = silent,
) -> DataCheck:
    """Count the labels and look at every image."""
    counts = {name: count_labels(data) for name, data in splits.items()}
    places = [(split, path) for split, data in splits.items() for path in data.images]
    thumbnails, unreadable = _thumbnails([path for _, path in places], report)
    findings = []
    for name in splits:
        reasons = tuple(reason for i, reason in unreadable.items() if places[i][0] == name)
        findings.append(Finding(True, "images that cannot be read", name, reasons))
    comparing = Steps(report, "comparing the images", 1)
    readable = [place for i, place in enumerate(places) if i not in unreadable]
    findings += [*_copies(readable, thumbnails), *_one_sided(splits, counts), *_unlabelled(splits)]
    findings += [*_only_later(splits, counts), *_other_convention(splits)]
    comparing.advance()
    images = {name: len(data) for name, data in splits.items()}
    return DataCheck(counts, images, [finding for finding in findings if finding.items])


def _thumbnails(paths: list[Path], report: Report) -> tuple[np.ndarray, dict[int, str]]:
    """Thumbnails float32 [n,192] of the readable images, and what is wrong with the others, by their position."""
    found, unreadable = [], {}
    steps = Steps(report, "opening the images", len(paths))
    with Decoder() as decoder:
        groups = decoder.groups(batched(range(len(paths)), GROUP), lambda i: thumbnail(paths[i]))
        for i, result in itertools.chain.from_iterable(groups):
            if isinstance(result, UserError):
                unreadable[i] = str(result)
            else:
                found.append(result)
            steps.advance()
    return np.array(found, dtype=np.float32).reshape(len(found), 3 * THUMBNAIL**2), unreadable


def thumbnail(image: ImageSource) -> np.ndarray:
    """The mean colours of 8x8 cells, float32 [192]: nearly the same for every copy of a picture."""
    cells = preprocess(image, 8 * THUMBNAIL).reshape(THUMBNAIL, 8, THUMBNAIL, 8, 3)
    mean: np.ndarray = cells.mean(axis=(1, 3), dtype=np.float32)
    return mean.ravel()


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
    groups: dict[str, list[tuple[str, ...]]] = {"": []}
    for members in groups_of_copies(thumbnails):
        splits = {places[i][0] for i in members}
        split = splits.pop() if len(splits) == 1 else ""
        groups.setdefault(split, []).append(tuple(str(places[i][1]) for i in members))
    for split, found in groups.items():
        what = "the same picture more than once" if split else "the same picture in different splits"
        items, images = (" = ".join(paths) for paths in found), (paths[:OF_EACH] for paths in found[:EXAMPLES])
        yield Finding(not split, f"times {what}", split, tuple(items), tuple(images))


def _one_sided(splits: dict[str, LabelledImages], counts: dict[str, list[LabelCounts]]) -> Iterator[Finding]:
    """Categories with nothing to learn or to measure. That nothing at all is known is a problem in the first split,
    the training set."""
    for number, (split, rows) in enumerate(counts.items()):
        for is_problem, what, found in (
            (number == 0, "categories without any known label", [r for r in rows if not r.known]),
            (False, "categories without a known positive", [r for r in rows if r.known and not r.positive]),
            (False, "categories without a known negative; if 0 was meant as absent, write -1",
             [r for r in rows if r.known and not r.negative]),
        ):  # fmt: skip
            yield _of_categories(is_problem, what, split, splits[split], [row.category for row in found], 1)


def _unlabelled(splits: dict[str, LabelledImages]) -> Iterator[Finding]:
    """Images of which nothing is known: they teach nothing and measure nothing."""
    for split, data in splits.items():
        paths = tuple(str(data.images[row]) for row in np.flatnonzero(~(data.labels != 0).any(axis=1)))
        yield Finding(False, "images without any known label", split, paths, tuple((p,) for p in paths[:EXAMPLES]))


def _only_later(splits: dict[str, LabelledImages], counts: dict[str, list[LabelCounts]]) -> Iterator[Finding]:
    """Categories that are measured, but of which the training set, the first split, has no positive."""
    (_, first), *later = counts.items()
    lacking = {row.category for row in first if not row.positive}
    for split, rows in later:
        found = [row.category for row in rows if row.positive and row.category in lacking]
        what = "categories with positives here, but none in the training set"
        yield _of_categories(False, what, split, splits[split], found, 1)


def _other_convention(splits: dict[str, LabelledImages]) -> Iterator[Finding]:
    """Categories of a table that is filled with 0, has some 1 and fewer -1: there 0 often means absent and -1
    uncertain, as in CheXpert."""
    for split, data in splits.items():
        absent, unknown = (data.labels < 0).sum(axis=0), (data.labels == 0).sum(axis=0)  # [C]
        positive = (data.labels > 0).sum(axis=0)  # [C]
        odd = (absent > 0) & (absent < positive) & (unknown > 0.5 * len(data))
        if odd.sum() > 0.5 * len(data.categories) and _has_zeros(Path(split)):
            names = [name for name, is_odd in zip(data.categories, odd, strict=True) if is_odd]
            what = "categories with mostly 0 and few -1; if they mean absent and uncertain, say so in data.values"
            yield _of_categories(False, what, split, data, names, -1)


def _of_categories(
    is_problem: bool, what: str, split: str, data: LabelledImages, names: list[str], label: int
) -> Finding:
    """A finding about categories, shown by images that have this label of them."""
    column = {name: c for c, name in enumerate(data.categories)}
    rows = (np.flatnonzero(data.labels[:, column[name]] == label)[:OF_EACH] for name in names[:EXAMPLES])
    images = tuple(tuple(str(data.images[row]) for row in found) for found in rows)
    return Finding(is_problem, what, split, tuple(names), images, f"labelled {MEANING[label]}")


def _has_zeros(path: Path) -> bool:
    """Whether a table writes 0 where others leave a blank."""
    if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        return False
    rows = csv_rows(path) if path.suffix.lower() == ".csv" else jsonl_rows(path)
    return any(value in (0, "0", "0.0") for _, cells in rows for value in cells.values())
