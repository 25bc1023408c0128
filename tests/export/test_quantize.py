"""int8: calibrated on real images, everything but the head, and the sensitive parts left in float32 when it matters."""

import numpy as np
import onnx
import pytest
import torch
from switches import ENCODERS, trained

from sdpl.export.fold import fold
from sdpl.export.graphs import encoder_runner
from sdpl.export.onnx import encoder_to_onnx
from sdpl.export.quantize import Calibration, quantize


def features(encoder, images):
    """u of an encoder, as the scores that the quantization watches; scaled to 1."""
    u = encoder_runner(encoder)(images)[0]
    return (u / 10).reshape(len(u), -1)


def ops(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("for_tensorrt", [False, True])
def test_convolutions_get_pairs_and_the_last_layer_does_not(encoder, images, for_tensorrt):
    result = quantize(encoder, Calibration(images), features, np.inf, for_tensorrt)
    assert result.left_in_float == {}
    assert result.images == len(images)
    convolutions = ("Conv",) if for_tensorrt else ("Conv", "AveragePool")  # what is one for ONNX Runtime's CPU
    assert ops(result.encoder).count("Conv") == sum(ops(encoder).count(op) for op in convolutions)
    producers = {out: node for node in result.encoder.graph.node for out in node.output}
    for node in result.encoder.graph.node:
        if node.op_type == "Conv":
            assert [producers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    last = [node for node in result.encoder.graph.node if node.op_type in ("MatMul", "Gemm")][-1]
    weight = next(name for name in last.input if name not in producers)
    assert weight in {i.name for i in result.encoder.graph.initializer if i.data_type == onnx.TensorProto.FLOAT}
    assert 0 < result.max_score_difference < 0.2 * np.abs(features(encoder, images)).max()


def test_tensorrt_gets_symmetric_scales_and_float_biases(encoder, images):
    graph = quantize(encoder, Calibration(images), features, np.inf, for_tensorrt=True).encoder.graph
    points = {n.input[2] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    values = [onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name in points]
    assert values
    assert all((value == 0).all() and value.dtype == np.int8 for value in values)


def test_sensitive_parts_are_found_by_measurement(encoder, images):
    lines = []
    everything = quantize(encoder, Calibration(images), features, np.inf, False)
    limit = everything.max_score_difference * 0.8
    result = quantize(encoder, Calibration(images), features, limit, False, lambda said: lines.append(said.step))
    assert result.left_in_float
    assert result.max_score_difference <= limit
    assert ops(result.encoder).count("QuantizeLinear") < ops(everything.encoder).count("QuantizeLinear")
    assert "looking for the sensitive parts" in lines[0]
    costs = list(result.left_in_float.values())
    assert costs == sorted(costs, reverse=True)


def test_ranges_are_measured_once_for_cpu_and_tensorrt(encoder, images):
    calibration = Calibration(images)
    first = quantize(encoder, calibration, features, np.inf, for_tensorrt=False)
    ranges, calibration.images = calibration.ranges, images[:1]  # what is measured no longer is looked at
    second = quantize(encoder, calibration, lambda model, _: features(model, images), np.inf, for_tensorrt=False)
    assert calibration.ranges == ranges
    assert first.encoder.SerializeToString() == second.encoder.SerializeToString()


def read_from_int8(model, op):
    """How many inputs of these nodes come from pairs, node by node; constants are pairs too, or none."""
    pairs = {out for node in model.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    return [sum(name in pairs for name in node.input) for node in model.graph.node if node.op_type == op]


def test_sums_among_convolutions_are_quantized(encoder, images):
    result = quantize(encoder, Calibration(images), features, np.inf, False)
    *sums, last = read_from_int8(result.encoder, "Add")
    assert set(sums) == {2}
    assert last == 0  # the bias of the last layer


@pytest.mark.parametrize("for_tensorrt", [False, True])
def test_in_a_transformer_products_alone_are_quantized(tmp_path, for_tensorrt):
    """Biases, GELU, softmax and residual sums are cheap, and their errors are not."""
    model = trained({"pooling": "trunk", **ENCODERS["ViT at another size, map pooled"]}, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    encoder = encoder_to_onnx(model.encoder, fold(model), torch.from_numpy(images))
    result = quantize(encoder, Calibration(images), features, np.inf, for_tensorrt).encoder
    for op in ("Add", "Softmax", "Erf", "LayerNormalization"):
        assert not any(read_from_int8(result, op)), op
    *products, last = read_from_int8(result, "MatMul")  # the last makes u and g
    assert len(products) == ops(encoder).count("MatMul") - 1
    assert set(products) == {2}
    assert last == 0
