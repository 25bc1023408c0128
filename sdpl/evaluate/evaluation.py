"""Scores of a whole data set and its metrics, from anything that scores a batch. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from sdpl.data.images import LabelledImages
from sdpl.data.reading import Unreadable
from sdpl.errors import UserError
from sdpl.evaluate.calibration import calibration
from sdpl.evaluate.metrics import f1_metrics, mean_average_precision, per_category_average_precision
from sdpl.pipeline import Decoder, stream
from sdpl.preprocess import preprocess
from sdpl.progress import Report, Steps, silent

Scorer = Callable[[np.ndarray], np.ndarray]  # uint8 [B,S,S,3] -> float32 [B,C]


@dataclass(frozen=True)
class Evaluated:
    """The model under evaluation, from a checkpoint or a bundle."""

    scores: Scorer
    attention: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  #: -> scores [B,C] and attention [B,C,h,w]
    categories: tuple[str, ...]
    image_size: int
    thresholds: np.ndarray  #: [C]
    target: str  #: what scores: "PyTorch", or a bundle's target with its library


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
    image_size: int,
    batch_size: int,
    report: Report = silent,
    unreadable: Unreadable | None = None,
) -> np.ndarray:
    """Scores float32 [N,C] of every image.

    The images that `unreadable` lets pass have no row: they are `data.without(unreadable.images)`.
    """
    unreadable, scores = unreadable or Unreadable(), []
    steps = Steps(report, "scoring", len(data))
    with Decoder() as decoder:
        load = partial(preprocess, image_size=image_size)
        for path, row in stream(decoder, data.images, load, scorer, batch_size):
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
