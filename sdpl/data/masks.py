"""Partial labels: which labels of a full label matrix are known."""

import numpy as np


def mask_labels(labels: np.ndarray, proportion: float, seed: int = 0) -> np.ndarray:
    """Keep each label independently with probability `proportion`; the others become 0 (unknown).

    labels: int [N,C] of 1 (present), -1 (absent), 0 (unknown). Returns a new array of the same shape.
    The draw is the field's published protocol, `random_sample(shape) < proportion` of NumPy's legacy
    generator, so the same seed gives the same mask as in the literature; global state is not touched.
    An image may end up with no known label; it is kept.
    """
    if not 0 < proportion <= 1:
        raise ValueError(f"proportion: expected a number in (0, 1], got {proportion}")
    known = np.random.RandomState(seed).random_sample(labels.shape) < proportion  # [N,C]
    return np.where(known, labels, 0).astype(labels.dtype)
