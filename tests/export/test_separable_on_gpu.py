"""`--head separable` for a GPU: one engine of the whole model in float16, really built; its proof is of that graph."""

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner

from sdpl.bundle import Bundle
from sdpl.cli import main
from sdpl.export.separable import SeparableScores
from sdpl.kernels.reference import attention_pool

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx", reason="needs the extra rtx")
NAME = "rtx:sm86:fp16"


@pytest.fixture(scope="module")
def separable(checkpoint, scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("separable") / "model.sdpl"
    words = ["export", checkpoint, "--out", out, "--target", NAME, "--head", "separable"]
    result = CliRunner().invoke(main, list(map(str, [*words, "--calibrate", scenes / "train"])))
    assert result.exit_code == 0, result.output
    return Bundle.open(out)


def test_its_files_are_one_graph_and_its_engine(separable):
    target = separable.manifest.targets[NAME]
    assert set(target.files) == {"model", "engine", "resize.sm86"}
    notes = target.notes["separable_head"]
    assert notes["dtype"] == "float16"
    assert 0 < notes["attention_moved"] <= 0.01
    assert target.proof().scored_by == "graph"


def test_the_products_are_float16_and_the_graph_s_scores_those_of_the_kind(separable):
    """The graph's own constants, as `SeparableScores` rounds them, make the graph's attention."""
    graph = onnx.load(separable.file(separable.manifest.targets[NAME].files["model"]))
    constants = {i.name: onnx.numpy_helper.to_array(i) for i in graph.graph.initializer if i.name.startswith("head.")}
    assert constants["head.x"].dtype == constants["head.weight.0"].dtype == np.float16
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in ("u", "g"))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    attention, u, g = session.run(["attention", "u", "g"], {"image": separable.proof()[0]})
    weight = constants["head.weight.0"].astype(np.float32)
    kind = SeparableScores(constants["head.x"].astype(np.float32), weight, 0, dtype="float16")
    _, expected = attention_pool(kind.scores(u.astype(np.float32)), g.astype(np.float32), constants["head.t.0"])
    np.testing.assert_allclose(attention, expected, rtol=2e-2, atol=1e-5)


def test_float16_is_part_of_the_error_that_is_measured():
    rng = np.random.default_rng(0)
    u, x, weight = (rng.standard_normal(size).astype(np.float32) for size in ((2, 9, 64), (64, 4), (256, 5)))
    exact, rounded = (SeparableScores(x, weight, 0, dtype=dtype).scores(u) for dtype in ("float32", "float16"))
    assert 1e-4 < np.abs(rounded - exact).max() < 0.1


def test_the_kind_of_head_and_its_error_are_told(separable, sdpl):
    state = json.loads(sdpl("info", separable.path, "--json").stdout)["targets"][NAME]
    assert re.fullmatch(r"separable, \d+ terms, 0\.\d\d% of attention moved", state["head"])


def test_the_bundle_is_enough_for_another_gpu_s_engine(separable, sdpl, fails, tmp_path):
    path = shutil.copytree(separable.path, tmp_path / "m.sdpl")
    assert "a precision whose graph it has (model.fp16.onnx); export" in fails(
        "export", path, "--target", "rtx:sm89:fp32"
    )
    result = sdpl("export", path, "--target", "rtx:sm89:fp16")
    assert result.exit_code == 0, result.output
    bundle = Bundle.open(path)
    before, added = bundle.manifest.targets[NAME], bundle.manifest.targets["rtx:sm89:fp16"]
    assert set(added.files) == {"model", "engine", "resize.sm89"}
    assert added.files["model"] == before.files["model"]
    assert added.compute_capability == "89"
    assert added.notes == before.notes
    assert added.proof().max_score_difference == before.proof().max_score_difference


@pytest.mark.parametrize("target", ["rtx:sm86:bf16", "rtx:sm86:int8", "cuda:fp16"])
def test_what_it_is_not_for_is_named(fails, checkpoint, scenes, tmp_path, target):
    words = ["--target", target, "--head", "separable", "--calibrate", scenes / "train"]
    if target == "cuda:fp16":
        words = words[:-2]
        expected = "--head separable is fitted to real images: add --calibrate FOLDER"
    else:
        expected = f"--target {target}: --head separable on a GPU is float16 or float32"
    assert expected in fails("export", checkpoint, "--out", tmp_path / "m.sdpl", *words)
