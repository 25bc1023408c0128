"""Every method switch exports as the same one operator, and the graph gives PyTorch's scores."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from switches import trained

from sdpl.export.fold import fold
from sdpl.export.head import add_head
from sdpl.export.onnx import OPSET, lowered
from sdpl.targets import PRECISIONS

HEADS = {
    "the paper's": {},
    "pooling trunk": {"pooling": "trunk"},
    "shared prompts": {"prompts": "shared"},
    "manual prompts": {"prompts": "manual"},
    "name in the middle": {"class_token_position": "middle"},
    "name in front": {"class_token_position": "front", "prompts": "shared"},
    "dual prompts": {"prompts": "dual"},
    "class vectors": {"prompts": "vectors"},
    "linear probe": {"prompts": "vectors", "decoupling": "none", "pooling": "trunk"},
    "other prompt length": {"prompt_tokens": 5},
    "convolutional": {"decoupling": "convolutional"},
    "convolutional, trunk": {"decoupling": "convolutional", "pooling": "trunk"},
    "no decoupling": {"decoupling": "none"},
    "no decoupling, trunk": {"decoupling": "none", "pooling": "trunk"},
    "softmax": {"probability": "softmax"},
    "learned temperature": {"learn_temperature": True, "inverse_temperature": 25.0},
}


def model_scorer(path):
    """Scores of a whole ONNX model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"image": images})[0]


def linear_graph(head) -> onnx.ModelProto:
    """f [B,L,D] -> u, g: in place of the encoder's graph, which no switch of the head touches."""
    weight = numpy_helper.from_array(head.weight.numpy(), "weight")
    arrays = [weight, numpy_helper.from_array(head.bias.numpy(), "bias")]
    arrays.append(numpy_helper.from_array(np.array([len(head.q), head.t.shape[1]]), "sizes"))
    nodes = [
        helper.make_node("MatMul", ["image", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["ug"]),
        helper.make_node("Split", ["ug", "sizes"], ["u", "g"], axis=-1),
    ]
    image, u, g = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", 9, None]) for n in ("image", "u", "g"))
    graph = helper.make_graph(nodes, "linear", [image], [u, g], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def require_standard_operators_with_the_same_scores(path, expected, actual):
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    np.testing.assert_allclose(actual, expected, rtol=0, atol=PRECISIONS["fp32"].score)
    assert np.ptp(expected, axis=1).min() > 1e-3  # the categories can be told apart, so the comparison says something


@pytest.mark.parametrize("name", HEADS)
def test_every_switch_of_the_head_exports_with_the_same_scores(name, tmp_path):
    model = trained(HEADS[name], tmp_path)
    path, head = tmp_path / "head.onnx", fold(model)
    f = torch.rand(5, 9, len(head.weight))  # [B,L,D]
    onnx.save(lowered(add_head(linear_graph(head), head.constants, model.config.probability)), path)
    with torch.no_grad():
        expected = model.probabilities(model.pool(f, model.text_features())[0]).numpy()
    require_standard_operators_with_the_same_scores(path, expected, model_scorer(path)(f.numpy()))
