"""The proof: a target gives PyTorch's scores on real images. The export and the serving machine compare alike."""

from typing import Any

import numpy as np

from sdpl.manifest import Accuracy, Verification

TOP_K = 5


def compare(
    expected: np.ndarray,
    actual: np.ndarray,
    tolerance: float,
    embeddings: tuple[np.ndarray, np.ndarray] | None = None,
    **about: Any,
) -> Verification:
    """Compare scores [N,C] of a target with PyTorch's, and both `embeddings` [N,E] where there are some; `about` are
    the record's other fields.

    Categories whose scores differ by less than the tolerance may swap places among the k best: that is no
    disagreement.
    """
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))  # [N,C]
    top_k = min(TOP_K, expected.shape[1])
    same = [_same_best(e, a, top_k, tolerance) for e, a in zip(expected, actual, strict=True)]
    return Verification(
        images=len(expected),
        max_score_difference=float(np.nan_to_num(difference, nan=np.inf).max()),
        mean_score_difference=float(np.nan_to_num(difference, nan=np.inf).mean()),
        tolerance=tolerance,
        top_k=top_k,
        same_top_k=float(np.mean(same)),
        embedding_cosine=None if embeddings is None else _least_cosine(*embeddings),
        **about,
    )


def failure(verification: Verification, max_mAP_drop: float) -> str | None:
    """What is wrong, with the numbers, when a comparison is outside of its limits; None when all is well.

    max_mAP_drop: in points; only looked at when accuracy was measured.
    """
    v = verification
    if not (v.max_score_difference <= v.tolerance and v.same_top_k == 1.0):
        return (
            f"scores differ by up to {v.max_score_difference:.2e} (tolerance {v.tolerance:g}), the {v.top_k} best "
            f"agree on {v.same_top_k:.1%} of {v.images} images"
        )
    if v.embedding_cosine is not None and v.embedding_limit is not None and v.embedding_cosine < v.embedding_limit:
        return f"an embedding has cosine {v.embedding_cosine:.6f} with PyTorch's (at least {v.embedding_limit:g})"
    if v.accuracy is not None and not drop(v.accuracy) <= max_mAP_drop:
        return (
            f"mAP falls by {drop(v.accuracy):.2f} points, from {v.accuracy.pytorch['mAP']:.2f} to "
            f"{v.accuracy.target['mAP']:.2f} on {v.accuracy.images} images (limit {max_mAP_drop:g})"
        )
    return None


def drop(accuracy: Accuracy) -> float:
    """Points of mAP that the target loses against PyTorch; negative when it gains."""
    return accuracy.pytorch["mAP"] - accuracy.target["mAP"]


def describe(verification: Verification) -> str:
    """The comparison in one line."""
    v = verification
    accuracy = f"; mAP {v.accuracy.pytorch['mAP']:.2f} -> {v.accuracy.target['mAP']:.2f}" if v.accuracy else ""
    embedding = "" if v.embedding_cosine is None else f"; embeddings' cosine {v.embedding_cosine:.6f} or more"
    return (
        f"{v.images} images: scores differ by at most {v.max_score_difference:.1e}, {v.mean_score_difference:.1e} on "
        f"average (tolerance {v.tolerance:g}); same {v.top_k} best on {v.same_top_k:.0%}{embedding}{accuracy}"
    )


def _least_cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Over the images, of embeddings [N,E]; -1 for one that is not finite."""
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    lengths = np.linalg.norm(e, axis=1) * np.linalg.norm(a, axis=1)
    return float(np.nan_to_num((e * a).sum(axis=1) / np.maximum(lengths, 1e-12), nan=-1).min())


def _same_best(expected: np.ndarray, actual: np.ndarray, k: int, tolerance: float) -> bool:
    """Whether the k best of `actual` [C] are, rank by rank, as good in `expected` [C] as its own k best."""
    own = np.sort(expected)[::-1][:k]
    chosen = expected[np.argsort(-actual, kind="stable")[:k]]
    return bool(np.all(np.abs(own - chosen) <= 2 * tolerance))
