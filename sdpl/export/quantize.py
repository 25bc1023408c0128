"""The encoder in int8: Q/DQ pairs around its operators, scales from real images, sensitive parts left in float32.

ONNX Runtime's static quantization does the work. What it is given: images of the user's, never noise; weights per
channel; no head and not the linear layer before it. On a CPU weights take 7 bits, since 8-bit products overflow on
processors without VNNI, and a bundle must give the same answers on all; TensorRT takes symmetric activations only.
"""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from sdpl.export.pools import pools_as_convolutions
from sdpl.progress import Progress, Report, silent

# a Relu among them becomes the lower bound of its operand's scale: without it, a pair lies before and behind it
OPERATORS = {"products": ("Conv", "MatMul", "Gemm", "Relu"), "sums": ("Add", "AveragePool")}
SUMMANDS = {"Conv", "Relu", "AveragePool"}  # one of them in a sum that is quantized; transformers' sums are in float
DEPTHS = 4  # the encoder is cut into so many parts when sensitive ones are looked for

Score = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]  # of an encoder, for images [N,S,S,3]: scores [N,C]


@dataclass
class Calibration:
    """Images uint8 [N,S,S,3], and, once they have been measured, the ranges of every tensor (ONNX Runtime's JSON)."""

    images: np.ndarray
    ranges: bytes | None = None


@dataclass(frozen=True)
class Quantized:
    """The encoder with Q/DQ pairs. left_in_float: parts found sensitive, with the error each causes alone."""

    encoder: onnx.ModelProto
    images: int
    max_score_difference: float
    left_in_float: dict[str, float]


def quantize(
    encoder: onnx.ModelProto,
    calibration: Calibration,
    score: Score,
    limit: float,
    for_tensorrt: bool,
    report: Report = silent,
) -> Quantized:
    """Quantize an encoder (outputs u and g); the ranges of a calibration are measured once and kept in it.

    When scores then differ by more than `limit`, each part (products or sums, in a quarter of the depth) is quantized
    alone to measure what it costs, and the costliest are left in float32, one more at a time, until they do not.
    """
    images, wanted = calibration.images, score(encoder, calibration.images)
    encoder = encoder if for_tensorrt else pools_as_convolutions(encoder)
    parts = _parts(encoder)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        work = _Quantizer(encoder, calibration, Path(folder), for_tensorrt)

        def attempt(names: list[str]) -> tuple[onnx.ModelProto, float]:
            quantized = work.quantize([node for name in names for node in parts[name]])
            return quantized, float(np.abs(score(quantized, images) - wanted).max())

        quantized, difference = attempt(list(parts))
        if difference <= limit:
            return Quantized(quantized, len(images), difference, {})
        report(Progress(f"int8 moves scores by {difference:.2g}, over {limit:g}: looking for the sensitive parts"))
        cost = {name: attempt([name])[1] for name in parts}
        order = sorted(cost, key=lambda name: cost[name], reverse=True)
        for left in range(1, len(order)):
            quantized, difference = attempt(order[left:])
            report(Progress(f"with {', '.join(order[:left])} in float32: {difference:.2g}"))
            if difference <= limit:
                break
    return Quantized(quantized, len(images), difference, {name: cost[name] for name in order[:left]})


class _Quantizer:
    """One encoder and its calibration, for any choice of nodes."""

    def __init__(self, encoder: onnx.ModelProto, calibration: Calibration, folder: Path, for_tensorrt: bool):
        self.calibration, self.folder, self.for_tensorrt = calibration, folder, for_tensorrt
        self.source = folder / "encoder.onnx"
        onnx.save(encoder, self.source)

    def quantize(self, nodes: list[str]) -> onnx.ModelProto:
        target, ranges = self.folder / "quantized.onnx", self.folder / "ranges.json"
        if self.calibration.ranges is not None:
            ranges.write_bytes(self.calibration.ranges)
        quantize_static(
            self.source,
            target,
            _Reader(self.calibration.images),
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
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # biases, GELU, softmax and so on take floats
            },
            calibration_cache_path=ranges,
        )
        self.calibration.ranges = ranges.read_bytes()
        return onnx.load(target)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime ships no types
    """Images as ONNX Runtime's calibration asks for them, one at a time: it keeps every tensor of a batch."""

    def __init__(self, images: np.ndarray):
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image[None]}


def _parts(encoder: onnx.ModelProto) -> dict[str, list[str]]:
    """Names of the nodes that may be quantized, by kind and quarter of the depth; not the last linear layer."""
    makes = {output: node.op_type for node in encoder.graph.node for output in node.output}
    nodes = [
        node
        for node in encoder.graph.node
        if any(node.op_type in names for names in OPERATORS.values())
        and (node.op_type != "Add" or SUMMANDS & {makes.get(name) for name in node.input})
    ]
    last = max(i for i, node in enumerate(nodes) if node.op_type in ("MatMul", "Gemm"))  # makes u and g
    parts: dict[str, list[str]] = {}
    for i, node in enumerate(nodes[:last]):
        kind = next(kind for kind, names in OPERATORS.items() if node.op_type in names)
        parts.setdefault(f"{kind} {DEPTHS * i // last + 1}/{DEPTHS}", []).append(node.name)
    return parts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice on pre-processing, which the exporter has already done."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
