"""PyTorch's scores against those of an exported graph, before there is a bundle around it. Needs no torch itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sdpl.bundle import Accuracy, Verification, to_scores
from sdpl.errors import UserError
from sdpl.export.precision import widen
from sdpl.kernels.reference import bilinear_attention_pool
from sdpl.kernels.tolerance import TOLERANCES
from sdpl.proof import compare, failure
from sdpl.train.data import LabelledImages
from sdpl.train.evaluate import evaluate, score_all

Scorer = Callable[[np.ndarray], np.ndarray]  # uint8 [B,S,S,3] -> float32 [B,C]
BATCH = 4  # the last batch of the proof is smaller, so two batch sizes are tried


@dataclass(frozen=True)
class Limits:
    """How far a target may be from PyTorch; None stands for the precision's own limit."""

    score_difference: float | None = None
    map_drop: float | None = None


@dataclass(frozen=True)
class Prover:
    """Compares targets with PyTorch: expected scores [N,C] of the proof's images uint8 [N,S,S,3], and, where there is
    labelled data, its accuracy on that."""

    images: np.ndarray
    expected: np.ndarray
    limits: Limits
    data: LabelledImages | None = None
    accuracy: dict[str, float] | None = None

    @classmethod
    def of(cls, pytorch: Scorer, images: np.ndarray, limits: Limits, data: LabelledImages | None) -> "Prover":
        """What PyTorch says, computed once."""
        return cls(images, in_batches(pytorch, images), limits, data, _accuracy(pytorch, data, images.shape[1]))

    def prove(self, scorer: Scorer, target: str, precision: str, of: str) -> Verification:
        """The comparison of a target. Raises UserError with the numbers when it is outside of the limits."""
        tolerance, limits = TOLERANCES[precision], self.limits
        accuracy = _accuracy(scorer, self.data, self.images.shape[1])
        result = compare(
            self.expected,
            in_batches(scorer, self.images),
            tolerance.score if limits.score_difference is None else limits.score_difference,
            of=of,
            accuracy=accuracy and Accuracy(images=len(self.data), pytorch=self.accuracy, target=accuracy),
            environment={"onnxruntime": onnxruntime.__version__},
        )
        wrong = failure(result, tolerance.map_drop if limits.map_drop is None else limits.map_drop)
        if wrong:
            raise UserError(
                f"{target} does not give PyTorch's answers: {wrong}. Nothing was exported; what was there before is "
                "untouched."
            )
        return result


def _accuracy(scorer: Scorer, data: LabelledImages | None, image_size: int) -> dict[str, float] | None:
    if data is None:
        return None
    result = evaluate(score_all(scorer, data, image_size, BATCH), data)
    return {"mAP": result.mAP, "OF1": result.f1["OF1"], "CF1": result.f1["CF1"]}


def model_scorer(path: Path) -> Scorer:
    """Scores of a whole ONNX model in ONNX Runtime on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"image": images})[0]


def encoder_runner(encoder: onnx.ModelProto) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """u [B,L,K] and g [B,L,E] of an encoder graph in ONNX Runtime on the CPU, as float32."""
    if encoder.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
        encoder = widen(encoder)
    session = onnxruntime.InferenceSession(encoder.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, g = session.run(["u", "g"], {"image": images})
        return u.astype(np.float32), g.astype(np.float32)

    return run


def encoder_scorer(encoder: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str) -> Scorer:
    """Scores of an encoder graph in ONNX Runtime on the CPU, with the head by its specification."""
    run = encoder_runner(encoder)

    def score(images: np.ndarray) -> np.ndarray:
        u, g = run(images)
        logits, _ = bilinear_attention_pool(u, constants["v"], constants["q"], g, constants["t"])  # [B,C]
        return to_scores(logits, probability)

    return score


def in_batches(scorer: Scorer, images: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """Scores [N,C] of images [N,S,S,3], a few at a time."""
    return np.concatenate([scorer(images[i : i + batch]) for i in range(0, len(images), batch)])
