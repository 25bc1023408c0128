"""Single images for the report: the worst errors with the attention behind them, and samples with their best scores."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sdpl.data.images import MEANING, LabelledImages, evenly_taken
from sdpl.data.reading import batches
from sdpl.evaluate.evaluation import Evaluated
from sdpl.plots import overlay, peak
from sdpl.preprocess import load_image
from sdpl.text import shortened

SIDE = 240  # pixels of the longer side of a picture
BATCH = 16
TOP = 5
NAMED = 10  # categories that a card lists because they are present
NAME = 80  # characters of a category's name
TWICE = 2  # cards of errors that one image may have
ALIKE = 3  # errors of one category in a row


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
    more_present: int = 0  # besides these


@dataclass(frozen=True)
class ScoreBar:
    category: str
    score: float
    label: str  # present, absent, unknown


@dataclass(frozen=True)
class SampleScores:
    """A model's best scores of an image, the present categories that are not among them, and where it looked for the
    card's category: a picture as data URI, and its peak as a multiple of its mean."""

    model: str
    bars: tuple[ScoreBar, ...]
    missed: tuple[ScoreBar, ...]
    more_missed: int  # besides these
    score: float  # of the card's category
    attention: str
    peak: float


@dataclass(frozen=True)
class SampleCard:
    """An image with the best scores of one model or several (figure 6), and where each looked for one category."""

    name: str
    photo: str
    category: str
    models: tuple[SampleScores, ...]


@dataclass(frozen=True)
class ScoredModel:
    """A model and its scores [N,C] of the data, in the order of the data's categories."""

    name: str
    model: Evaluated
    scores: np.ndarray


def worst_errors(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, most: int, elsewhere: Sequence[int] = ()
) -> tuple[list[Case], list[Case]]:
    """The false positives with the highest scores and the false negatives with the lowest; unknown is neither.

    elsewhere: rows that the page shows once in another part, which counts.
    """
    positive = scores >= thresholds  # [N,C]
    shown = Counter(elsewhere)
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
    maps = _attention(model, data, {(case.row, case.column) for case in cases})
    cards = []
    for case in cases:
        photo, attention = small_photo(data.images[case.row]), maps[case.row, case.column]
        present = tuple(_name(data, c) for c in np.flatnonzero(data.labels[case.row] > 0))
        cards.append(
            ErrorCard(
                data.images[case.row].name,
                _name(data, case.column),
                case.score,
                float(model.thresholds[case.column]),
                peak(attention),
                present[:NAMED],
                data_uri(photo),
                data_uri(overlay(photo, attention)),
                max(0, len(present) - NAMED),
            )
        )
    return cards


def sample_rows(data: LabelledImages, most: int) -> list[int]:
    """At most so many images, spread evenly over the data."""
    return evenly_taken(len(data), most)


def sample_cards(models: Sequence[ScoredModel], data: LabelledImages, rows: Sequence[int]) -> list[SampleCard]:
    """These images with their best scores by each model, and where it looked for one category, the same for all: the
    present one that the first model scores highest; where none is present, its best."""
    columns = {}
    for row in rows:
        first, present = models[0].scores[row], data.labels[row] > 0
        columns[row] = int(np.argmax(np.where(present, first, -1) if present.any() else first))
    maps = {own.name: _attention(own.model, data, set(columns.items())) for own in models}
    cards = []
    for row, column in columns.items():
        photo = small_photo(data.images[row])
        shown = tuple(_best(own, data, photo, row, column, maps[own.name][row, column]) for own in models)
        cards.append(SampleCard(data.images[row].name, data_uri(photo), _name(data, column), shown))
    return cards


def _best(
    own: ScoredModel, data: LabelledImages, photo: Image.Image, row: int, column: int, attention: np.ndarray
) -> SampleScores:
    """Of one model's scores of an image."""
    scores = own.scores[row]
    order = np.argsort(-scores, kind="stable")
    missed = [c for c in order[TOP:] if data.labels[row, c] > 0]
    bars, under = (
        tuple(ScoreBar(_name(data, c), float(scores[c]), MEANING[int(data.labels[row, c])]) for c in columns)
        for columns in (order[:TOP], missed[:NAMED])
    )
    picture, more = data_uri(overlay(photo, attention)), len(missed) - len(under)
    return SampleScores(own.name, bars, under, more, float(scores[column]), picture, peak(attention))


def _name(data: LabelledImages, column: int | np.signedinteger) -> str:
    """Of a category, as a card has room for it."""
    return shortened(data.categories[column], NAME)


def _attention(
    model: Evaluated, data: LabelledImages, wanted: set[tuple[int, int]]
) -> dict[tuple[int, int], np.ndarray]:
    """Where the model looks in these (row, column) of the data: float32 [h,w] each."""
    rows = sorted({row for row, _ in wanted})
    maps: dict[tuple[int, int], np.ndarray] = {}
    done = 0
    for images, _ in batches(data.subset(rows), model.image_size, BATCH):
        found = dict(zip(rows[done : done + len(images)], model.attention(images)[1], strict=True))
        for row, column in wanted:
            if row in found:
                maps[row, column] = found[row][model.categories.index(data.categories[column])].copy()
        done += len(images)
    return maps


def data_uri(image: Image.Image) -> str:
    """The picture as a JPEG inside a URI."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=75, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def small_photo(path: Path, side: int = SIDE) -> Image.Image:
    """The image, no side longer than `side` pixels. Raises UserError when it cannot be read."""
    photo = load_image(path, decode_side=2 * side)
    photo.thumbnail((side, side))
    return photo
