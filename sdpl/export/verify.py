"""The proof: an exported target gives PyTorch's scores on real images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from sdpl.bundle import Verification
from sdpl.errors import UserError
from sdpl.kernels.tolerance import TOLERANCES

TOP_K = 5


def compare(expected: np.ndarray, actual: np.ndarray, precision: str) -> Verification:
    """Compare scores [N,C] of a target with PyTorch's. Categories whose scores differ by less than the tolerance
    may swap places among the k best: that is no disagreement."""
    tolerance = TOLERANCES[precision].score
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))  # [N,C]
    top_k = min(TOP_K, expected.shape[1])
    same = [_same_best(e, a, top_k, tolerance) for e, a in zip(expected, actual, strict=True)]
    return Verification(
        images=len(expected),
        max_score_difference=float(np.nan_to_num(difference, nan=np.inf).max()),
        mean_score_difference=float(difference.mean()),
        tolerance=tolerance,
        top_k=top_k,
        same_top_k=float(np.mean(same)),
    )


def require_within(verification: Verification, target: str) -> None:
    """Raise UserError with the numbers when a comparison is above its tolerance."""
    v = verification
    if not (v.max_score_difference <= v.tolerance and v.same_top_k == 1.0):
        raise UserError(
            f"{target} does not give PyTorch's answers: scores differ by up to {v.max_score_difference:.2e} "
            f"(tolerance {v.tolerance:.0e}), the {v.top_k} best agree on {v.same_top_k:.1%} of {v.images} images. "
            "Nothing was exported; what was there before is untouched. Please report it with the configuration."
        )


def onnx_scorer(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of an ONNX file in ONNX Runtime on the CPU, before there is a bundle around it."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"image": images})[0]


def in_batches(scorer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int = 4) -> np.ndarray:
    """Scores [N,C] of images [N,S,S,3], a few at a time; the last batch is smaller, so two batch sizes are tried."""
    return np.concatenate([scorer(images[i : i + batch]) for i in range(0, len(images), batch)])


def _same_best(expected: np.ndarray, actual: np.ndarray, k: int, tolerance: float) -> bool:
    """Whether the k best of `actual` [C] are, rank by rank, as good in `expected` [C] as its own k best."""
    own = np.sort(expected)[::-1][:k]
    chosen = expected[np.argsort(-actual, kind="stable")[:k]]
    return bool(np.all(np.abs(own - chosen) <= 2 * tolerance))
