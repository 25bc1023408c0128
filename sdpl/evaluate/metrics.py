"""Metrics of multi-label recognition. Unknown labels (0) count nowhere. NumPy only."""

import numpy as np

from sdpl.evaluate.curves import Curves, curves


def average_precision(scores: np.ndarray, labels: np.ndarray, interpolation: str = "none") -> float:
    """AP of one category from scores [N] and labels [N], as `per_category_average_precision`."""
    return float(per_category_average_precision(scores[:, None], labels[:, None], interpolation)[0])


def per_category_average_precision(scores: np.ndarray, labels: np.ndarray, interpolation: str = "none") -> np.ndarray:
    """AP float [C] from scores [N,C] and labels [N,C] of 1, -1, 0; NaN without a known positive.

    "none" is the area under the precision-recall steps (scikit-learn's `average_precision_score`); "voc2012" first
    replaces the precision at each recall by the largest at any higher recall. Raises ValueError for scores of NaN.
    """
    check_shapes(scores, labels)
    aps = np.full(labels.shape[1], np.nan)
    for block, some in curves(scores, labels):
        aps[block] = _areas(some, interpolation)
    return aps


def _areas(some: Curves, interpolation: str) -> np.ndarray:
    """Areas under precision over recall, [c]: between two thresholds recall grows by the hits between them."""
    precision = np.where(some.ends, some.precision, 0.0)
    if interpolation == "voc2012":
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    hits = np.maximum.accumulate(np.where(some.ends, some.hits, 0), axis=1)
    gained = np.diff(hits, prepend=0)  # [c,N], 0 within ties
    areas: np.ndarray = np.full(len(precision), np.nan)
    np.divide((gained * precision).sum(axis=1), some.positives, out=areas, where=some.positives > 0)
    return areas


def mean_average_precision(scores: np.ndarray, labels: np.ndarray, interpolation: str = "none") -> float:
    """Mean AP in 0..1 over the categories that have a known positive; NaN when none has."""
    aps = per_category_average_precision(scores, labels, interpolation)
    return float(np.nanmean(aps)) if np.isfinite(aps).any() else float("nan")


def mean_average_precision_error(labels: np.ndarray) -> float:
    """An upper estimate of the standard error, in 0..1, that mAP has from so few known positives in labels [N,C].

    A category's AP is the mean of n precisions, one at each known positive; a number in 0..1 deviates by at most 1/2,
    so their mean by 1/(2 sqrt(n)), and mAP over C categories by sqrt(sum of 1/(4 n)) / C. NaN without a positive.
    """
    positives = (labels > 0).sum(axis=0)
    positives = positives[positives > 0]
    return float(np.sqrt((1 / (4 * positives)).sum()) / len(positives)) if len(positives) else float("nan")


def f1_metrics(
    scores: np.ndarray, labels: np.ndarray, threshold: float | np.ndarray = 0.5, top_k: int | None = None
) -> dict[str, float]:
    """OP, OR, OF1, CP, CR, CF1 in 0..1, from scores [N,C] and labels [N,C] of 1, -1, 0.

    Positive means score >= threshold (a number or one per category), or, with `top_k`, being among the k
    best scores of the image. O: over all labels together. C: mean over the categories of precision and of
    recall (0 where undefined); CF1 is the harmonic mean of CP and CR, as the field computes it.
    """
    check_shapes(scores, labels)
    if top_k is None:
        predicted = scores >= threshold  # [N,C]
    else:
        predicted = np.zeros(scores.shape, dtype=bool)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        np.put_along_axis(predicted, best, True, axis=1)
    known, truth = labels != 0, labels > 0
    predicted &= known
    hits, said, there = (matrix.sum(axis=0) for matrix in (predicted & truth, predicted, truth))  # [C] each
    each = known.any(axis=0)  # [C], whether anything is known of the category
    result = {"OP": float(_share(hits.sum(), said.sum())), "OR": float(_share(hits.sum(), there.sum()))}
    for name, of in (("CP", said), ("CR", there)):
        result[name] = float(_share(hits[each], of[each]).mean()) if each.any() else 0.0
    result["OF1"] = _harmonic(result["OP"], result["OR"])
    result["CF1"] = _harmonic(result["CP"], result["CR"])
    return {name: result[name] for name in ("OP", "OR", "OF1", "CP", "CR", "CF1")}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, 0 where there is none."""
    share: np.ndarray = part / np.maximum(whole, 1)
    return share


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def check_shapes(scores: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError unless scores and labels are two matrices [N,C] of one shape."""
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(f"expected scores and labels [N,C], got {list(scores.shape)} and {list(labels.shape)}")
