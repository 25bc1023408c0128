"""Bundles whose hashes are right around contents that do not fit, and manifests that name what cannot be."""

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from sdpl.bundle import PROOF, Bundle, sha256
from sdpl.errors import UserError
from sdpl.manifest import MANIFEST
from sdpl.onnx_interface import NotOnnxError, read_interface
from sdpl.runtime import Recognizer, availability

pytestmark = pytest.mark.slow


@pytest.fixture
def copied(bundle, tmp_path):
    return shutil.copytree(bundle, tmp_path / "copy.sdpl")


def edit(bundle, change):
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def rehash(bundle, name):
    record = {"sha256": sha256(bundle / name), "size": (bundle / name).stat().st_size}
    edit(bundle, lambda manifest: manifest["files"].update({name: record}))


def graph(side=64, categories=10, cells=4, embedding=16, name="scores", **external):
    """A graph that looks like a bundle's, without one node that computes."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["B", side, side, 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", categories]),
        helper.make_tensor_value_info("attention", TensorProto.FLOAT, ["B", categories, cells]),
        helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["B", embedding]),
    ]
    weights = TensorProto(
        name="w", dims=[1], data_type=TensorProto.FLOAT, **({} if external else {"raw_data": bytes(4)})
    )
    for key, value in external.items():
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key=key, value=value)
    nodes = [helper.make_node("Identity", ["w"], [output.name]) for output in outputs]
    return helper.make_model(helper.make_graph(nodes, "g", [image], outputs, [weights]))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graph(side=32), "size, categories or map: image"),
        (graph(categories=9), "size, categories or map: scores, attention"),
        (graph(cells=1), "size, categories or map: attention"),
        (graph(embedding=8), "size, categories or map: embedding"),
        (graph(name="other"), "takes image and gives other, attention, embedding"),
        (graph(location="../../etc/passwd"), "lists no '../../etc/passwd'"),
        (graph(location="/etc/passwd"), "lists no '/etc/passwd'"),
    ],
)
def test_a_graph_of_something_else_is_refused_before_an_engine_opens_it(copied, model, message):
    onnx.save(model, copied / "model.onnx") if not model.graph.initializer[0].external_data else (
        copied / "model.onnx"
    ).write_bytes(model.SerializeToString())
    rehash(copied, "model.onnx")
    with pytest.raises(UserError, match=message.replace("..", r"\.\.")):
        Recognizer.open(copied)


def test_the_interface_is_what_onnx_says(bundle, tmp_path):
    model = onnx.load(bundle / "model.onnx")
    found = read_interface(bundle / "model.onnx")
    for ours, theirs in ((found.inputs, model.graph.input), (found.outputs, model.graph.output)):
        shapes = {v.name: [d.dim_value or None for d in v.type.tensor_type.shape.dim] for v in theirs}
        assert ours == shapes
    assert found.external == set()
    for content in (b"", b"\x0a", b"\xff" * 100, (bundle / "model.onnx").read_bytes()[:1000]):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(NotOnnxError):
            read_interface(tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": np.zeros((2, 64, 64, 3), np.uint8), "scores": np.zeros((2, 9), np.float32)},
        {"images": np.zeros((2, 32, 32, 3), np.uint8), "scores": np.zeros((2, 10), np.float32)},
        {"images": np.zeros((2, 64, 64, 3), np.float32), "scores": np.zeros((2, 10), np.float32)},
        {"images": np.zeros((0, 64, 64, 3), np.uint8), "scores": np.zeros((0, 10), np.float32)},
        {"images": np.zeros((2, 64, 64, 3), np.uint8)},
    ],
)
def test_a_proof_of_another_size_is_refused(copied, tensors):
    save_file(tensors, copied / PROOF)
    rehash(copied, PROOF)
    with pytest.raises(UserError, match="is no proof for 10 categories"):
        Bundle.open(copied).proof()


def test_a_head_of_another_size_is_refused(gpu_bundle, tmp_path):
    """Its sizes become addresses on a GPU."""
    copied = shutil.copytree(gpu_bundle, tmp_path / "copy.sdpl")
    bundle = Bundle.open(copied)
    target = bundle.manifest.targets["rtx:sm86:fp16"]
    good = bundle.head(target)
    for change in (
        {"v": good["v"][:9]},
        {"q": good["q"][:1]},
        {"t": good["t"] * np.nan},
        {"v": good["v"].astype(np.float16)},
    ):
        save_file({**good, **change}, copied / target.files["head"])
        rehash(copied, target.files["head"])
        with pytest.raises(UserError, match="is no head for 10 categories"):
            Bundle.open(copied).head(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m["targets"]["cpu:fp32"]["files"].update(model="other.onnx"),
            "names files that the bundle does not",
        ),
        (lambda m: m["targets"]["cpu:fp32"].update(files={}), "its files lack model"),
        (lambda m: m["targets"].update({"../x": m["targets"]["cpu:fp32"]}), "is no name of a target"),
        (lambda m: m["files"].update({"a//b": m["files"][PROOF]}), "is no path of a file in a bundle"),
        (lambda m: m["files"].update({"a\nb": m["files"][PROOF]}), "is no path of a file in a bundle"),
        (lambda m: m["files"].update({"a" * 300: m["files"][PROOF]}), "is no path of a file in a bundle"),
        (lambda m: m["files"].update({MANIFEST: m["files"][PROOF]}), "is no path of a file in a bundle"),
        (lambda m: m["files"].update({f"{i}": m["files"][PROOF] for i in range(10_001)}), "more than a bundle has"),
        (lambda m: m["categories"].__setitem__(0, "\x1b[2J"), "has a control character"),
        (lambda m: m["categories"].__setitem__(0, "a" * 10_000), "a name has 10,000 characters"),
        (
            lambda m: m["preprocessing"].update(image_size=10**9),
            "image_size: Input should be less than or equal to 4096",
        ),
        (lambda m: m.update(map_size=[10**6, 10**6]), "map_size.0: Input should be less than"),
    ],
)
def test_a_manifest_that_names_what_cannot_be_is_refused(copied, change, message):
    edit(copied, change)
    with pytest.raises(UserError, match=message):
        Bundle.open(copied)


def test_links_in_a_circle_and_pipes_are_refused(copied):
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(UserError, match=r"points outside the bundle|is missing"):
        Bundle.open(copied).file("model.onnx")
    (copied / "model.onnx").unlink()
    os.mkfifo(copied / "model.onnx")
    with pytest.raises(UserError, match="is missing from the bundle"):
        Bundle.open(copied).file("model.onnx")
    (copied / MANIFEST).unlink()
    os.mkfifo(copied / MANIFEST)
    with pytest.raises(UserError, match="is not a bundle"):
        Bundle.open(copied)


def test_engines_of_strangers_can_be_refused(gpu_bundle, monkeypatch):
    monkeypatch.setattr(availability, "_engines_are_refused", False)
    bundle = Bundle.open(gpu_bundle)
    assert "native code" not in availability.target_obstacle(bundle, "rtx:sm86:fp16")
    availability.refuse_engines()
    assert "--no-engines" in availability.target_obstacle(bundle, "rtx:sm86:fp16")
    assert availability.target_obstacle(bundle, "cpu:fp32") is None
