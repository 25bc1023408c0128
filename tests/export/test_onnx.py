"""The ONNX graph: its head is one node, its function is the specification, and no step holds B*C*L*K values."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sdpl.export.onnx import DOMAIN, OPERATOR, OPSET, function
from sdpl.export.separable import SeparableScores
from sdpl.kernels.reference import attention_pool, bilinear_attention_pool


def operator(kind, shapes):
    """The model-local function alone, in ONNX Runtime. shapes: dimensions by name of input, a letter each."""
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in shapes.items()]
    results = {"logits": "BC", "attention": "BCL"}
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(s)) for n, s in results.items()]
    node = helper.make_node(OPERATOR, list(shapes), ["logits", "attention"], domain=DOMAIN)
    model = helper.make_model(
        helper.make_graph([node], "operator", inputs, outputs),
        functions=[onnx.parser.parse_function(function(kind))],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda *arrays: session.run(None, dict(zip(shapes, arrays, strict=True)))


@pytest.fixture(scope="module")
def exact():
    return operator("exact", {"u": "BLK", "v": "CK", "q": "K", "g": "BLE", "t": "CE"})


@pytest.mark.parametrize(
    ("batch", "locations", "categories", "joint", "embed"),
    [(2, 5, 3, 7, 4), (1, 1, 1, 1, 1), (3, 49, 20, 64, 16), (1, 196, 81, 8, 8), (4, 50, 7, 300, 32)],
)
def test_function_is_the_specification(exact, batch, locations, categories, joint, embed):
    rng = np.random.default_rng(0)
    shapes = ((batch, locations, joint), (categories, joint), (joint,), (batch, locations, embed), (categories, embed))
    arrays = [rng.standard_normal(shape) for shape in shapes]
    logits, attention = exact(*(a.astype(np.float32) for a in arrays))
    expected_logits, expected_attention = bilinear_attention_pool(*arrays)
    np.testing.assert_allclose(attention, expected_attention, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected_logits, rtol=2e-5, atol=2e-5)


def test_function_keeps_the_eps_rule(exact):
    zeros = np.zeros((1, 3, 4), np.float32)
    logits, _ = exact(zeros, np.ones((2, 4), np.float32), np.ones(4, np.float32), zeros, np.ones((2, 4), np.float32))
    assert (logits == 0).all()


def test_the_separable_function_computes_its_own_scores():
    rng = np.random.default_rng(0)
    shapes = {"u": (2, 5, 6), "x": (6, 3), "weight": (18, 4), "g": (2, 5, 7), "t": (4, 7)}
    u, x, weight, g, t = (rng.standard_normal(shape).astype(np.float32) for shape in shapes.values())
    run = operator("separable", {"u": "BLK", "x": "KR", "weight": "NC", "g": "BLE", "t": "CE"})
    logits, attention = run(u, x, weight, g, t)
    expected = attention_pool(SeparableScores(x, weight, 0).scores(u), g, t)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(attention, expected[1], rtol=1e-5, atol=1e-6)


def test_graph_as_other_tools_see_it(bundle):
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=False)
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [d.dim_value for d in rest] == [64, 64, 3]
    assert [o.name for o in model.graph.output] == ["scores", "attention"]
    heads = [n for n in model.graph.node if n.domain == DOMAIN]
    assert [n.op_type for n in heads] == [OPERATOR]
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, OPERATOR)]
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_each_image_its_own_scores(bundle, batch):
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
    (together,) = session.run(["scores"], {"image": images})
    alone = [session.run(["scores"], {"image": images[i : i + 1]})[0][0] for i in range(batch)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
