"""An encoder's graph in ONNX Runtime on the CPU: for calibrating, and for engines that cannot run on this machine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sdpl.bundle import to_scores
from sdpl.export.precision import widen
from sdpl.kernels.reference import bilinear_attention_pool

Scorer = Callable[[np.ndarray], np.ndarray]  # uint8 [B,S,S,3] -> float32 [B,C]
BATCH = 4


def encoder_runner(encoder: onnx.ModelProto) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """u [B,L,K] and g [B,L,E] of an encoder graph, as float32."""
    if encoder.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
        encoder = widen(encoder)
    session = onnxruntime.InferenceSession(encoder.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        u, g = session.run(["u", "g"], {"image": images})
        return u.astype(np.float32), g.astype(np.float32)

    return run


def encoder_scorer(encoder: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str) -> Scorer:
    """Scores of an encoder graph, with the head by its specification."""
    run = encoder_runner(encoder)

    def score(images: np.ndarray) -> np.ndarray:
        u, g = run(images)
        logits, _ = bilinear_attention_pool(u, constants["v"], constants["q"], g, constants["t"])  # [B,C]
        return to_scores(logits, probability)

    return score


def model_runner(path: Path, output: str) -> Scorer:
    """An output of a whole model's graph: its scores [B,C] or embeddings [B,E]."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run([output], {"image": images})[0]


def in_batches(scorer: Scorer, images: np.ndarray, batch: int = BATCH) -> np.ndarray:
    """Scores [N,C] of images [N,S,S,3], a few at a time."""
    return np.concatenate([scorer(images[i : i + batch]) for i in range(0, len(images), batch)])
