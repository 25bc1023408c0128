"""Scores of a whole data set and its metrics, from anything that scores a batch. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sdpl.data.images import LabelledImages
from sdpl.data.reading import Unreadable
from sdpl.errors import UserError
from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.metrics import f1_metrics, mean_average_precision, per_category_average_precision
from sdpl.pipeline import Decoder, Pixels, Reading, stream
from sdpl.progress import Report, Steps, silent

MAX_METRICS = 64 << 20  # bytes of a file of metrics
Scorer = Callable[[Any], np.ndarray]  # uint8 [B,S,S,3], or what its `Reading` collates, -> float32 [B,C]


@dataclass(frozen=True)
class Evaluated:
    """The model under evaluation, from a checkpoint or a bundle."""

    scores: Scorer
    attention: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  #: -> scores [B,C] and attention [B,C,h,w]
    categories: tuple[str, ...]
    image_size: int
    thresholds: np.ndarray  #: [C]
    target: str  #: what scores: "PyTorch", or a bundle's target with its library
    own_reading: Callable[[], Reading] | None = None  #: for each run, if it reads images in a way of its own

    def reading(self) -> Reading:
        """How the images of one run are read for `scores`."""
        return self.own_reading() if self.own_reading else Pixels(self.image_size)


@dataclass(frozen=True)
class Evaluation:
    """Metrics in percent. `ap` has None for a category without a known positive."""

    images: int
    mAP: float  # noqa: N815, the field writes it so
    mAP_voc2012: float  # noqa: N815
    f1: dict[str, float]
    f1_top3: dict[str, float]
    ece: float  #: expected calibration error
    ap: dict[str, float | None]


def score_all(
    scorer: Scorer,
    data: LabelledImages,
    reading: Reading,
    batch_size: int,
    report: Report = silent,
    unreadable: Unreadable | None = None,
) -> np.ndarray:
    """Scores float32 [N,C] of every image. reading: how images come to the scorer.

    The images that `unreadable` lets pass have no row: they are `data.without(unreadable.images)`.
    """
    unreadable, scores, steps = unreadable or Unreadable(), [], Steps(report, "scoring", len(data))
    with Decoder() as decoder:
        for path, row in stream(decoder, data.images, reading.load, scorer, batch_size, reading.collate):
            if isinstance(row, UserError):
                unreadable(path, row)
            else:
                scores.append(row)
            steps.advance()
    if not scores:
        raise UserError(f"none of {len(data)} images could be read; `sdpl-data check` says why.")
    return np.stack(scores)


def evaluate(scores: np.ndarray, data: LabelledImages, thresholds: float | np.ndarray = 0.5) -> Evaluation:
    """All metrics of scores [N,C] against the data's labels."""
    if not (data.labels > 0).any():
        raise UserError("no image has a known positive label: there is nothing to measure mAP on.")
    aps = per_category_average_precision(scores, data.labels)
    ap = {
        name: None if np.isnan(value) else 100 * float(value) for name, value in zip(data.categories, aps, strict=True)
    }
    return Evaluation(
        images=len(data),
        mAP=100 * float(np.nanmean(aps)),
        mAP_voc2012=100 * mean_average_precision(scores, data.labels, "voc2012"),
        f1={k: 100 * v for k, v in f1_metrics(scores, data.labels, thresholds).items()},
        f1_top3={k: 100 * v for k, v in f1_metrics(scores, data.labels, top_k=3).items()},
        ece=100 * calibration(scores, data.labels).error,
        ap=ap,
    )


def read_evaluation(path: Path) -> Evaluation:
    """The metrics that `sdpl-eval --json` wrote. Raises UserError for another kind of file."""
    try:
        if path.stat().st_size > MAX_METRICS:
            raise UserError(f"{path}: has more than {MAX_METRICS >> 20} MB, which no evaluation writes.")
        found = TypeAdapter(Evaluation).validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the file"
        raise UserError(
            f"{path}: is not what `sdpl-eval --json` writes ({where}: {error.errors()[0]['msg']})."
        ) from None
    if not {"OF1", "CF1"} <= found.f1.keys():
        raise UserError(f"{path}: is not what `sdpl-eval --json` writes (f1: has no OF1 and CF1).")
    return found


def require_same_data(found: Evaluation, data: LabelledImages, name: str) -> None:
    """Raise UserError when an evaluation is about other images or categories, as far as their number and names tell."""
    if found.images != len(data) or found.ap.keys() != set(data.categories):
        there, here = (f"{n} images and {c} categories" for n, c in ((found.images, len(found.ap)), data.labels.shape))
        raise UserError(f"{name}: is about {there}, not the same {here} as here: compare models on the same labels.")
