"""Decision thresholds of the categories, fitted on validation data. Needs no torch."""

import numpy as np
from sklearn.metrics import precision_recall_curve

DEFAULT = 0.5  # the field's rule


def fit_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each category the threshold of the best F1, [C], from scores [N,C] and labels [N,C] of 1, -1, 0 (unknown).

    It lies half-way between two scores, so that rounding elsewhere moves no image across it. Of several that are
    equally good the lowest is taken. A category without a known positive or a known negative keeps 0.5.
    """
    columns = zip(scores.T, labels.T, strict=True)
    return np.array([_fit(column[known != 0], known[known != 0] > 0) for column, known in columns])


def _fit(scores: np.ndarray, positive: np.ndarray) -> float:
    if not positive.any() or positive.all():
        return DEFAULT
    precision, recall, cuts = precision_recall_curve(positive, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = cuts[f1[:-1].argmax()]  # the last point of the curve, recall 0, has no cut
    below = scores[scores < best]
    return float((best + (below.max() if len(below) else 0)) / 2)
