"""Single images for the report: the worst errors with the attention behind them, and samples with their best scores."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdpl.data.images import LabelledImages
from sdpl.data.reading import batches
from sdpl.evaluate.evaluation import Evaluated
from sdpl.plots import overlay
from sdpl.preprocess import load_image

SIDE = 240  # pixels of the longer side of a picture
BATCH = 16
TOP = 5
TWICE = 2  # cards of errors that one image may have
ALIKE = 3  # errors of one category in a row
MEANING = {1: "present", -1: "absent", 0: "unknown"}


@dataclass(frozen=True)
class Case:
    """One label that the model gets wrong: row of the image, column of the category."""

    row: int
    column: int
    score: float


@dataclass(frozen=True)
class ErrorCard:
    """A wrong label as the page shows it; the pictures are data URIs."""

    name: str
    category: str
    score: float
    threshold: float
    peak: float  # of the attention, as a multiple of its mean
    present: tuple[str, ...]  # what is labelled present in the image
    photo: str
    attention: str


@dataclass(frozen=True)
class ScoreBar:
    category: str
    score: float
    label: str  # present, absent, unknown


@dataclass(frozen=True)
class SampleScores:
    """A model's best scores of an image, and the present categories that are not among them."""

    model: str
    bars: tuple[ScoreBar, ...]
    missed: tuple[ScoreBar, ...]


@dataclass(frozen=True)
class SampleCard:
    """An image with the best scores of one model or several (figure 6)."""

    name: str
    photo: str
    models: tuple[SampleScores, ...]


def worst_errors(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, most: int
) -> tuple[list[Case], list[Case]]:
    """The false positives with the highest scores and the false negatives with the lowest; unknown is neither."""
    positive = scores >= thresholds  # [N,C]
    shown: Counter[int] = Counter()
    return (
        _cases(scores, (labels < 0) & positive, -scores, most, shown),
        _cases(scores, (labels > 0) & ~positive, scores, most, shown),
    )


def _cases(scores: np.ndarray, wrong: np.ndarray, order: np.ndarray, most: int, shown: Counter[int]) -> list[Case]:
    """In the given order; but of one category no more than `ALIKE` before all others have had their turn, and no image
    more than twice. shown: how often each was shown already; counted on."""
    rows, columns = np.nonzero(wrong)
    ranked = np.argsort(order[rows, columns], kind="stable")
    seen: Counter[int] = Counter()
    turns = []
    for column in columns[ranked]:
        turns.append(seen[column] // ALIKE)
        seen[column] += 1
    chosen: list[int] = []
    for i in ranked[np.argsort(np.array(turns, dtype=int), kind="stable")]:
        if len(chosen) < most and shown[int(rows[i])] < TWICE:
            shown[int(rows[i])] += 1
            chosen.append(int(i))
    return [Case(int(r), int(c), float(scores[r, c])) for r, c in zip(rows[chosen], columns[chosen], strict=True)]


def error_cards(cases: Sequence[Case], model: Evaluated, data: LabelledImages) -> list[ErrorCard]:
    """Each case with its photo and the attention of its category over it."""
    rows = sorted({case.row for case in cases})
    maps: dict[tuple[int, int], np.ndarray] = {}
    done = 0
    for images, _ in batches(data.subset(rows), model.image_size, BATCH):
        found = dict(zip(rows[done : done + len(images)], model.attention(images)[1], strict=True))
        maps |= {(c.row, c.column): found[c.row][c.column].copy() for c in cases if c.row in found}
        done += len(images)
    cards = []
    for case in cases:
        photo, attention = small_photo(data.images[case.row]), maps[case.row, case.column]
        present = tuple(np.array(data.categories, dtype=object)[data.labels[case.row] > 0])
        cards.append(
            ErrorCard(
                data.images[case.row].name,
                data.categories[case.column],
                case.score,
                float(model.thresholds[case.column]),
                float(attention.max() * attention.size),
                present,
                data_uri(photo),
                data_uri(overlay(photo, attention)),
            )
        )
    return cards


def sample_cards(scores: dict[str, np.ndarray], data: LabelledImages, most: int) -> list[SampleCard]:
    """Images spread evenly over the data, with their best scores by each model: {"model": scores [N,C]}."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(most, len(data))).astype(int))
    return [
        SampleCard(
            data.images[row].name,
            data_uri(small_photo(data.images[row])),
            tuple(_best(model, found[row], data, row) for model, found in scores.items()),
        )
        for row in rows
    ]


def _best(model: str, scores: np.ndarray, data: LabelledImages, row: int) -> SampleScores:
    """Of one model's scores [C] of an image."""
    order = np.argsort(-scores, kind="stable")
    bars = [ScoreBar(data.categories[c], float(scores[c]), MEANING[int(data.labels[row, c])]) for c in order]
    return SampleScores(model, tuple(bars[:TOP]), tuple(bar for bar in bars[TOP:] if bar.label == "present"))


def data_uri(image: Image.Image) -> str:
    """The picture as a JPEG inside a URI."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def small_photo(path: Path, side: int = SIDE) -> Image.Image:
    """The image, no side longer than `side` pixels. Raises UserError when it cannot be read."""
    photo = load_image(path, decode_side=2 * side)
    photo.thumbnail((side, side))
    return photo
