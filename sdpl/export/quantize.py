"""The encoder in int8: Q/DQ pairs around its operators, scales from real images, sensitive parts left in float32.

ONNX Runtime's static quantisation does the work. What it is given: images of the user's, never noise; weights per
channel; no head and not the linear layer before it. On a CPU weights take 7 bits, since 8-bit products overflow on
processors without VNNI, and a bundle must give the same answers on all; TensorRT takes symmetric activations only.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

OPERATORS = {"products": ("Conv", "MatMul", "Gemm"), "sums": ("Add", "AveragePool")}
DEPTHS = 4  # the encoder is cut into so many parts when sensitive ones are looked for
BATCH = 4

Score = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]  # of an encoder, for images [N,S,S,3]: scores [N,C]


@dataclass(frozen=True)
class Quantised:
    """The encoder with Q/DQ pairs. left_in_float: parts found sensitive, with the error each causes alone."""

    encoder: onnx.ModelProto
    images: int
    max_score_difference: float
    left_in_float: dict[str, float]


def quantise(
    encoder: onnx.ModelProto,
    images: np.ndarray,
    score: Score,
    limit: float,
    for_tensorrt: bool,
    report: Callable[[str], None] = lambda line: None,
) -> Quantised:
    """Quantise an encoder (outputs u and g) on images uint8 [N,S,S,3].

    When scores then differ by more than `limit`, each part (products or sums, in a quarter of the depth) is quantised
    alone to measure what it costs, and the costliest are left in float32, one more at a time, until they do not.
    """
    parts = _parts(encoder)
    wanted = score(encoder, images)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        work = _Quantiser(encoder, images, Path(folder), for_tensorrt)

        def attempt(names: list[str]) -> tuple[onnx.ModelProto, float]:
            quantised = work.quantise([node for name in names for node in parts[name]])
            return quantised, float(np.abs(score(quantised, images) - wanted).max())

        quantised, difference = attempt(list(parts))
        if difference <= limit:
            return Quantised(quantised, len(images), difference, {})
        report(f"int8 moves scores by {difference:.2g}, more than {limit:g}: looking for the sensitive parts")
        cost = {name: attempt([name])[1] for name in parts}
        order = sorted(cost, key=cost.get, reverse=True)
        for left in range(1, len(order)):
            quantised, difference = attempt(order[left:])
            report(f"with {', '.join(order[:left])} in float32: {difference:.2g}")
            if difference <= limit:
                break
    return Quantised(quantised, len(images), difference, {name: cost[name] for name in order[:left]})


class _Quantiser:
    """One encoder and its calibration: ranges are measured once and kept for every choice of nodes."""

    def __init__(self, encoder: onnx.ModelProto, images: np.ndarray, folder: Path, for_tensorrt: bool):
        self.images, self.folder, self.for_tensorrt = images, folder, for_tensorrt
        self.source = folder / "encoder.onnx"
        onnx.save(encoder, self.source)

    def quantise(self, nodes: list[str]) -> onnx.ModelProto:
        target = self.folder / "quantised.onnx"
        quantize_static(
            self.source,
            target,
            _Reader(self.images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[name for names in OPERATORS.values() for name in names],
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=not self.for_tensorrt,
            activation_type=QuantType.QInt8 if self.for_tensorrt else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": self.for_tensorrt,
                "WeightSymmetric": True,
                "QuantizeBias": not self.for_tensorrt,
            },
            calibration_cache_path=self.folder / "ranges.json",
        )
        return onnx.load(target)


class _Reader(CalibrationDataReader):
    """Images as ONNX Runtime's calibration asks for them, a few at a time."""

    def __init__(self, images: np.ndarray):
        self.batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


def _parts(encoder: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the nodes that may be quantised, by kind and quarter of the depth; not the last linear layer."""
    nodes = [node for node in encoder.graph.node if any(node.op_type in names for names in OPERATORS.values())]
    last = max(i for i, node in enumerate(nodes) if node.op_type in ("MatMul", "Gemm"))  # makes u and g
    parts: dict[str, list[str]] = {}
    for i, node in enumerate(nodes[:last]):
        kind = next(kind for kind, names in OPERATORS.items() if node.op_type in names)
        parts.setdefault(f"{kind} {DEPTHS * i // last + 1}/{DEPTHS}", []).append(node.name)
    return parts


@contextmanager
def _quiet():
    """Without the library's advice on pre-processing, which the exporter has already done."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
