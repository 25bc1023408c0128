"""The proof: a target gives PyTorch's scores on real images. The export and the serving machine compare alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from sdpl.manifest import Accuracy, Verification

TOP_K = 5


@dataclass(frozen=True)
class Answers:
    """What a model says about images: scores float32 [N,C] and, where it gives some, embeddings float32 [N,E]."""

    scores: np.ndarray
    embeddings: np.ndarray | None = None


Run = Callable[[np.ndarray], Answers]  # of images uint8 [B,S,S,3]


def answer_all(run: Run, images: np.ndarray, batches: Sequence[int]) -> Answers:
    """The answers for images uint8 [N,S,S,3], N > 0, in batches of these sizes, taken in turn."""
    parts: list[Answers] = []
    sizes, start = cycle(batches), 0
    while start < len(images):
        size = next(sizes)
        parts.append(run(images[start : start + size]))
        start += size
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    scores = np.concatenate([part.scores for part in parts])
    return Answers(scores, np.concatenate(embeddings) if embeddings else None)


def compare(expected: Answers, actual: Answers, tolerance: float, **about: Any) -> Verification:
    """Compare a target's answers with PyTorch's: scores, and embeddings where PyTorch's are known; `about` are the
    record's other fields.

    Categories whose scores differ by less than the tolerance may swap places among the k best: that is no
    disagreement.
    """
    difference = np.abs(expected.scores.astype(np.float64) - actual.scores.astype(np.float64))  # [N,C]
    top_k = min(TOP_K, expected.scores.shape[1])
    same = [_same_best(e, a, top_k, tolerance) for e, a in zip(expected.scores, actual.scores, strict=True)]
    return Verification(
        images=len(expected.scores),
        max_score_difference=float(np.nan_to_num(difference, nan=np.inf).max()),
        mean_score_difference=float(np.nan_to_num(difference, nan=np.inf).mean()),
        tolerance=tolerance,
        top_k=top_k,
        same_top_k=float(np.mean(same)),
        embedding_cosine=_least_cosine(expected.embeddings, actual.embeddings),
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


def _least_cosine(expected: np.ndarray | None, actual: np.ndarray | None) -> float | None:
    """Over the images, of embeddings [N,E]; -1 for one that is not finite; None where none are expected."""
    if expected is None:
        return None
    if actual is None:
        raise ValueError("expected embeddings beside the scores, got none")
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    lengths = np.linalg.norm(e, axis=1) * np.linalg.norm(a, axis=1)
    return float(np.nan_to_num((e * a).sum(axis=1) / np.maximum(lengths, 1e-12), nan=-1).min())


def _same_best(expected: np.ndarray, actual: np.ndarray, k: int, tolerance: float) -> bool:
    """Whether the k best of `actual` [C] are, rank by rank, as good in `expected` [C] as its own k best."""
    own = np.sort(expected)[::-1][:k]
    chosen = expected[np.argsort(-actual, kind="stable")[:k]]
    return bool(np.all(np.abs(own - chosen) <= 2 * tolerance))
