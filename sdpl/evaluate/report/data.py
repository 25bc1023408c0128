"""The page of checked label files: what was found, with pictures of it, and the known labels of every category."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdpl.data.check import DataCheck, Finding
from sdpl.data.images import LabelCounts, LabelledImages
from sdpl.errors import UserError
from sdpl.evaluate.report.cases import data_uri, small_photo
from sdpl.evaluate.report.figures import positives_by_category
from sdpl.evaluate.report.page import figure, write_page
from sdpl.text import printable, shortened

# What the page shows of it all, so that it stays under 2 MB; `sdpl-data check --json` has the rest.
MOST_FINDINGS = 24  # problems first
MOST_ITEMS = 15  # of a finding
PICTURES = 600_000  # characters of all pictures together, divided between the findings that have some
SIDE = 110  # pixels of the longer side of a picture
MOST_SPLITS = 8
MOST_ROWS, MOST_CELLS = 1500, 12_000  # of the table of categories: rows, and counts in them
NAME, PLACE = 60, 200  # characters of a category's name, and of a path or a reason


@dataclass(frozen=True)
class SplitRow:
    """What a split holds. known: the part of its labels; positives: of an image, on the average."""

    name: str
    images: int
    known: float
    positives: float
    unlabelled: int


@dataclass(frozen=True)
class Example:
    """An item of a finding, with pictures that show it: of each its file's name and a data URI."""

    title: str
    pictures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class FindingCard:
    """A finding as the page shows it: `items` are the first ones, or where the examples say what they are, none."""

    finding: Finding
    split: str
    examples: tuple[Example, ...]
    items: tuple[str, ...]


def write_data_report(path: Path, splits: dict[str, LabelledImages], result: DataCheck) -> None:
    """Write the page of `sdpl.data.check.check(splits)` atomically. Raises UserError when it cannot be written."""
    shown = list(splits)[:MOST_SPLITS]
    counts = {printable(shortened(name, NAME)): result.counts[name] for name in shown}
    categories = len(result.counts[shown[0]])
    rows = min(MOST_ROWS, MOST_CELLS // (4 * len(shown)))
    write_page(
        path,
        "data.html",
        splits=[_split_row(name, splits[name]) for name in shown],
        hidden_splits=len(splits) - len(shown),
        images=sum(result.images.values()),
        labels=sum(row.known for own in result.counts.values() for row in own),
        categories=categories,
        problems=result.problems,
        warnings=len(result.findings) - result.problems,
        cards=list(finding_cards(result.findings)),
        figure=figure(lambda: positives_by_category(counts), "known positives of the categories, the most first"),
        rows=category_rows(counts, rows),
    )


def category_rows(counts: dict[str, list[LabelCounts]], most: int) -> list[tuple[str, list[LabelCounts]]]:
    """Each category's name and its counts in every split: all of them in their order, or of more than `most` those
    with the fewest positives in the first split."""
    rows = [(own[0].category, list(own)) for own in zip(*counts.values(), strict=True)]
    if len(rows) > most:
        rows = sorted(rows, key=lambda row: row[1][0].positive)[:most]
    return [(shortened(name, NAME), own) for name, own in rows]


def finding_cards(findings: Sequence[Finding]) -> Iterator[FindingCard]:
    """The first findings, problems before warnings. Each has the same share of the page for its pictures."""
    chosen = sorted(findings, key=lambda finding: not finding.is_problem)[:MOST_FINDINGS]
    share = PICTURES // max(1, sum(bool(finding.images) for finding in chosen))
    for finding in chosen:
        examples = _examples(finding, share)
        titles = {example.title for example in examples}
        items = (_shown(finding, i) for i in range(min(MOST_ITEMS, len(finding.items))))
        split = printable(shortened(finding.split, PLACE))
        yield FindingCard(finding, split, examples, tuple(item for item in items if item not in titles))


def _examples(finding: Finding, room: int) -> tuple[Example, ...]:
    """The first items with pictures, as many as fit into `room` characters."""
    found = []
    for i, paths in enumerate(finding.images[:MOST_ITEMS]):
        pictures = tuple(_pictures(paths, room))
        room -= sum(len(uri) for _, uri in pictures)
        if pictures:
            found.append(Example(_shown(finding, i), pictures))
    return tuple(found)


def _pictures(paths: Sequence[str], room: int) -> Iterator[tuple[str, str]]:
    """Of those that can be read, as many as fit into `room` characters."""
    for path in paths:
        try:
            uri = data_uri(small_photo(Path(path), SIDE))
        except UserError:  # a finding of its own
            continue
        room -= len(uri)
        if room < 0:
            return
        yield printable(shortened(Path(path).name, NAME)), uri


def _shown(finding: Finding, i: int) -> str:
    return printable(shortened(finding.items[i], PLACE))


def _split_row(name: str, data: LabelledImages) -> SplitRow:
    known = data.labels != 0  # [N,C]
    positives = float((data.labels > 0).sum() / max(1, len(data)))
    return SplitRow(
        printable(shortened(name, PLACE)), len(data), float(known.mean()), positives, int(np.sum(~known.any(axis=1)))
    )
