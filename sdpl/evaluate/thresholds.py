"""Decision thresholds of the categories, fitted on validation data. Needs no torch."""

import numpy as np

from sdpl.evaluate.curves import Curves, curves
from sdpl.evaluate.metrics import check_shapes

DEFAULT = 0.5  # the field's rule


def fit_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each category the threshold of the best F1, [C], from scores [N,C] and labels [N,C] of 1, -1, 0 (unknown).

    It lies half-way between two scores, so that rounding elsewhere moves no image across it. Of several that are
    equally good the lowest is taken. A category without a known positive or a known negative keeps 0.5.
    """
    check_shapes(scores, labels)
    thresholds = np.full(labels.shape[1], DEFAULT)
    for block, some in curves(scores, labels):
        thresholds[block] = _best(some)
    return thresholds


def _best(some: Curves) -> np.ndarray:
    """Thresholds [c]: F1 = 2 hits / (said + positives), so that equally good ones are exactly equal."""
    f1 = np.where(some.ends, 2 * some.hits / (some.said + some.positives[:, None]), -1.0)  # [c,N]
    best = f1.shape[1] - 1 - f1[:, ::-1].argmax(axis=1)[:, None]  # [c,1], the lowest of the best
    padded = np.pad(some.scores, ((0, 0), (0, 1)), constant_values=-np.inf)
    cut, below = (np.take_along_axis(padded, best + step, axis=1)[:, 0] for step in (0, 1))  # [c]
    negatives = np.isfinite(some.scores).sum(axis=1) - some.positives
    fitted = (cut + np.where(np.isfinite(below), below, 0)) / 2
    return np.where((some.positives > 0) & (negatives > 0), fitted, DEFAULT)
