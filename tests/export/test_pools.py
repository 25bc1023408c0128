"""Average pools: dropped where they do nothing, convolutions of the same values for int8 on a CPU."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from sdpl.export.pools import pools_as_convolutions, without_idle_pools

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def graph(*pools: dict, shape: tuple = ("B", 5, 9, 8)) -> onnx.ModelProto:
    """A Relu, these pools one after the other, and a Neg."""
    names = [f"x{i}" for i in range(len(pools) + 1)]
    nodes = [helper.make_node("Relu", ["x"], ["x0"])]
    for i, pool in enumerate(pools):
        nodes.append(helper.make_node("AveragePool", [names[i]], [names[i + 1]], name=f"pool{i}", **pool))
    nodes.append(helper.make_node("Neg", [names[-1]], ["y"]))
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, of) for name, of in (("x", shape), ("y", None))]
    made = helper.make_graph(nodes, "pools", ports[:1], ports[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(2, 5, 9, 8)).astype(np.float32)
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_pool_of_one_value_is_dropped_and_the_bits_stay():
    model = graph({"kernel_shape": [1, 1]}, POOL, {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0] * 4})
    before = run(model)
    assert ops(without_idle_pools(model)) == ["Relu", "AveragePool", "Neg"]
    np.testing.assert_array_equal(run(model), before)


def test_a_pool_of_one_value_that_strides_stays():
    assert ops(without_idle_pools(graph({"kernel_shape": [1, 1], "strides": [2, 2]}))) == ["Relu", "AveragePool", "Neg"]


@pytest.mark.parametrize("pool", [POOL, {"kernel_shape": [3, 2], "strides": [1, 2]}, {"kernel_shape": [4, 4]}])
def test_a_convolution_gives_the_same_values(pool):
    model = graph(pool, POOL)
    convolutions = pools_as_convolutions(model)
    assert ops(model) == ["Relu", "AveragePool", "AveragePool", "Neg"]
    assert ops(convolutions) == ["Relu", "Conv", "Conv", "Neg"]
    np.testing.assert_allclose(run(convolutions), run(model), atol=1e-6)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        ({**POOL, "pads": [1, 1, 1, 1], "count_include_pad": 0}, ("B", 5, 9, 8)),
        ({**POOL, "ceil_mode": 1}, ("B", 5, 9, 8)),
        ({**POOL, "dilations": [2, 2]}, ("B", 5, 9, 8)),
        ({**POOL, "auto_pad": "SAME_UPPER"}, ("B", 5, 9, 8)),
        (POOL, ("B", "C", 9, 8)),
    ],
)
def test_pools_at_edges_and_of_unknown_channels_stay(pool, shape):
    model = graph(pool, shape=shape)
    assert ops(pools_as_convolutions(model)) == ["Relu", "AveragePool", "Neg"]
    np.testing.assert_array_equal(run(pools_as_convolutions(model)), run(model))
