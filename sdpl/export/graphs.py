"""An encoder's graph in ONNX Runtime on the CPU: for calibrating, and for engines that cannot run on this machine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from sdpl.bundle import to_scores
from sdpl.export.precision import widen
from sdpl.kernels.reference import bilinear_attention_pool, mean_embedding
from sdpl.verification import Answers, Run

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


def run_encoder(encoder: onnx.ModelProto, constants: dict[str, np.ndarray], probability: str) -> Run:
    """An encoder's graph, with the head by its specification."""
    encode = encoder_runner(encoder)

    def run(images: np.ndarray) -> Answers:
        u, g = encode(images)
        logits, _ = bilinear_attention_pool(u, constants["v"], constants["q"], g, constants["t"])  # [B,C]
        return Answers(to_scores(logits, probability), mean_embedding(g))

    return run


def run_model(path: Path) -> Run:
    """A whole model's graph."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = [output.name for output in session.get_outputs()]
    names = [name for name in ("scores", "embedding") if name in given]
    return lambda images: Answers(*session.run(names, {"image": images}))
