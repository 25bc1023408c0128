"""Counts down the scores of each category, many categories in one piece: what average precision and thresholds need.

scikit-learn's curves are of one category, and cost a millisecond each before anything is sorted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 1 << 20  # labels counted at once: about 50 MB


@dataclass(frozen=True)
class Curves:
    """Some categories, each a row whose known labels stand first, the best score first; [c,N] where not said else.

    scores: -infinity behind the known ones. hits: known positives among the scores so far. said: known labels so far.
    ends: whether a row's score is the last of its ties, so that a threshold can lie behind it. positives [c]: in all.
    """

    scores: np.ndarray
    hits: np.ndarray
    said: np.ndarray
    ends: np.ndarray
    positives: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Of a threshold behind each score [c,N]; means something at `ends` alone."""
        share: np.ndarray = self.hits / self.said
        return share


def curves(scores: np.ndarray, labels: np.ndarray) -> Iterator[tuple[slice, Curves]]:
    """The categories of scores [N,C] and labels [N,C] of 1, -1, 0 (unknown), in blocks. Raises ValueError for NaN."""
    images, categories = labels.shape
    size = max(1, BLOCK // max(1, images))
    for start in range(0, categories if images else 0, size):
        block = slice(start, min(start + size, categories))
        yield block, _count(scores[:, block], labels[:, block])


def _count(scores: np.ndarray, labels: np.ndarray) -> Curves:
    known = labels != 0
    if not np.isfinite(scores[known]).all():
        raise ValueError("expected scores that are numbers, got NaN or infinity")
    ranked = np.where(known, scores, -np.inf).T  # [c,N]
    order = np.argsort(-ranked, axis=1)  # ties in any order: only the last of them counts
    ranked = np.take_along_axis(ranked, order, axis=1)
    hits = np.cumsum(np.take_along_axis(labels.T > 0, order, axis=1), axis=1)
    ends = np.ones(ranked.shape, dtype=bool)
    ends[:, :-1] = ranked[:, 1:] != ranked[:, :-1]
    ends &= np.isfinite(ranked)
    said = np.broadcast_to(np.arange(1, ranked.shape[1] + 1), ranked.shape)
    return Curves(ranked, hits, said, ends, hits[:, -1])
