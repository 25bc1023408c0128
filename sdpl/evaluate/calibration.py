"""How well scores are probabilities: known labels in bins by their score. Unknown labels (0) count nowhere."""

from dataclasses import dataclass

import numpy as np

from sdpl.evaluate.metrics import check_shapes


@dataclass(frozen=True)
class Calibration:
    """Known labels in bins of equal width by their score: how many [n], their mean score [n] and how often they are
    present [n], both NaN where a bin is empty."""

    count: np.ndarray
    mean_score: np.ndarray
    frequency: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error in 0..1: `|frequency - mean score|`, weighted by count (Guo et al. 2017)."""
        gap = np.abs(self.frequency - self.mean_score)
        return float(np.nansum(gap * self.count) / self.count.sum())


def calibration(scores: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """How well scores [N,C] are probabilities of the known labels [N,C], all categories together."""
    check_shapes(scores, labels)
    known = labels != 0
    score, present = scores[known].astype(np.float64), labels[known] > 0
    index = np.minimum((score * bins).astype(int), bins - 1)  # a score of 1 belongs to the last bin
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    return Calibration(
        count, np.bincount(index, score, minlength=bins) / filled, np.bincount(index, present, minlength=bins) / filled
    )
