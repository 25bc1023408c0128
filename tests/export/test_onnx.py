"""Whole graphs: standard operators only, the oldest opset that means the same, metadata, any batch, any size."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import sdpl.export.onnx as graphs
from sdpl.bundle import Bundle
from sdpl.export.onnx import lowered, save, set_metadata


def test_graph_as_other_tools_see_it(bundle):
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == TensorProto.UINT8
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param
    assert [d.dim_value for d in rest] == [64, 64, 3]
    assert [o.name for o in model.graph.output] == ["scores", "attention", "embedding"]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert not {"BatchNormalization", "Scan", "Loop", "If"} & {n.op_type for n in model.graph.node}
    assert ([o.version for o in model.opset_import], model.ir_version) == ([14], 7)


def test_the_graph_says_what_it_is(bundle):
    """As a tool reads it that has the file alone."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    found, manifest = session.get_modelmeta().custom_metadata_map, Bundle.open(bundle).manifest
    names = {int(number): name for number, name in json.loads(found["names"]).items()}
    assert tuple(names[i] for i in range(len(names))) == manifest.categories
    assert tuple(json.loads(found["thresholds"])) == manifest.thresholds
    assert json.loads(found["imgsz"]) == [64, 64]
    assert found["resize"] == "squash, bicubic, antialiased"
    assert found["checkpoint_sha256"] == manifest.checkpoint_sha256
    assert found["version"] == f"sdpl {manifest.sdpl_version}"
    assert str(bundle) not in " ".join(found.values())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_each_image_its_own_scores(bundle, batch):
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)
    (together,) = session.run(["scores"], {"image": images})
    alone = [session.run(["scores"], {"image": images[i : i + 1]})[0][0] for i in range(batch)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def small_model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(600, dtype=np.float32).reshape(2, 300), "weight")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", n]) for name, n in (("x", 2), ("y", 300)))
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["z"]), helper.make_node("Relu", ["z"], ["y"])]
    made = helper.make_graph(nodes, "small", [x], [y], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_oldest_opset_is_that_of_the_newest_operator():
    model = lowered(small_model())
    assert [entry.version for entry in model.opset_import] == [14]  # Relu's
    assert model.ir_version == 7
    onnx.checker.check_model(model, full_check=True)


def test_metadata_replaces_what_was_there():
    model = set_metadata(small_model(), {"a": "1"})
    set_metadata(model, {"names": "{}"})
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("names", "{}")]


def test_a_model_too_large_for_one_file_gets_a_second(tmp_path, monkeypatch):
    x = np.ones((1, 2), np.float32)
    assert save(small_model(), tmp_path / "a.onnx") == {"model": "a.onnx"}
    monkeypatch.setattr(graphs, "MAX_BYTES", 1000)
    assert save(small_model(), tmp_path / "b.onnx") == {"model": "b.onnx", "weights": "b.onnx.data"}
    assert (tmp_path / "b.onnx.data").stat().st_size >= 2400
    whole, cut = (
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("a.onnx", "b.onnx")
    )
    np.testing.assert_array_equal(whole, cut)
