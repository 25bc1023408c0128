"""The head as standard nodes: the specification's numbers for any sizes, and no step that holds B*C*L*K values."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from sdpl.export import head
from sdpl.export.head import add_head
from sdpl.export.onnx import OPSET, lowered
from sdpl.export.separable import SeparableScores
from sdpl.kernels.reference import attention_pool, bilinear_attention_pool, mean_embedding


def graph(constants, locations, joint, embed, kind="exact", probability="sigmoid"):
    """The head alone, from u and g."""
    sizes = {"u": ["B", locations, joint], "g": ["B", locations, embed]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sizes.items()]
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(helper.make_graph([], "head", values, values), opset_imports=opset)
    model = lowered(add_head(model, {n: a.astype(np.float32) for n, a in constants.items()}, probability, kind))
    onnx.checker.check_model(model, full_check=True)
    return model


def embedding(model, u, g):
    """[B,E]"""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["embedding"], {"u": u.astype(np.float32), "g": g.astype(np.float32)})[0]


def run(model, u, g):
    """logits [B,C] (of the sigmoid's scores) and attention [B,C,L]."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    scores, attention = session.run(["scores", "attention"], {"u": u.astype(np.float32), "g": g.astype(np.float32)})
    return np.log(scores / (1 - scores)), attention


SIZES = [(2, 5, 3, 7, 4), (1, 1, 1, 1, 1), (3, 49, 20, 64, 16), (1, 196, 81, 8, 8), (4, 50, 7, 300, 32)]


@pytest.mark.parametrize(("batch", "locations", "categories", "joint", "embed"), SIZES)
@pytest.mark.parametrize("blocks", ["one", "several, the last one smaller"])
def test_the_nodes_are_the_specification(batch, locations, categories, joint, embed, blocks, monkeypatch):
    if blocks != "one":
        monkeypatch.setattr(head, "BLOCK_VALUES", 2 * locations * joint)
        monkeypatch.setattr(head, "POOL", 3)
    rng = np.random.default_rng(0)
    v, q, t = (
        rng.standard_normal((categories, joint)),
        rng.standard_normal(joint),
        rng.standard_normal((categories, embed)),
    )
    u, g = rng.standard_normal((batch, locations, joint)), rng.standard_normal((batch, locations, embed))
    model = graph({"v": v, "q": q, "t": t}, locations, joint, embed)
    np.testing.assert_allclose(embedding(model, u, g), mean_embedding(g), rtol=2e-5, atol=1e-6)
    logits, attention = run(model, u, g)
    expected_logits, expected_attention = bilinear_attention_pool(u, v, q, g, t)
    np.testing.assert_allclose(attention, expected_attention, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(logits, expected_logits, rtol=2e-4, atol=5e-5)  # through a sigmoid and back


def test_an_embedding_of_nothing_is_no_division_by_zero():
    zeros, ones = np.zeros((1, 3, 4)), np.ones((2, 4))
    logits, _ = run(graph({"v": ones, "q": np.ones(4), "t": ones}, 3, 4, 4), zeros, zeros)
    assert (logits == 0).all()
    assert (embedding(graph({"v": ones, "q": np.ones(4), "t": ones}, 3, 4, 4), zeros, zeros) == 0).all()


def test_a_wrong_constant_is_noticed():
    rng = np.random.default_rng(0)
    v, q, t = rng.standard_normal((5, 6)), rng.standard_normal(6), rng.standard_normal((5, 4))
    u, g = rng.standard_normal((2, 9, 6)), rng.standard_normal((2, 9, 4))
    _, attention = run(graph({"v": v[::-1], "q": q, "t": t}, 9, 6, 4), u, g)
    assert np.abs(attention - bilinear_attention_pool(u, v, q, g, t)[1]).max() > 0.01


@pytest.mark.parametrize("pool", [256, 3])
def test_the_separable_nodes_compute_their_own_scores(pool, monkeypatch):
    monkeypatch.setattr(head, "POOL", pool)
    rng = np.random.default_rng(0)
    shapes = {"u": (2, 5, 6), "x": (6, 3), "weight": (18, 4), "g": (2, 5, 7), "t": (4, 7)}
    u, x, weight, g, t = (rng.standard_normal(shape).astype(np.float32) for shape in shapes.values())
    logits, attention = run(graph({"x": x, "weight": weight, "t": t}, 5, 6, 7, "separable"), u, g)
    expected = attention_pool(SeparableScores(x, weight, 0).scores(u), g, t)
    np.testing.assert_allclose(logits, expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention, expected[1], rtol=1e-5, atol=1e-6)


def test_no_tensor_of_2000_categories_is_large():
    """At C=2000, K=1024, L=49 no intermediate takes more than 4 MB an image: shapes as onnx infers them."""
    rng = np.random.default_rng(0)
    constants = {"v": rng.standard_normal((2000, 1024)), "q": np.ones(1024), "t": rng.standard_normal((2000, 512))}
    inferred = onnx.shape_inference.infer_shapes(graph(constants, 49, 1024, 512))
    values = [*inferred.graph.value_info, *inferred.graph.output]
    assert len(values) > 300
    for value in values:
        sizes = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        assert 4 * np.prod(sizes) <= 4 << 20, value.name
