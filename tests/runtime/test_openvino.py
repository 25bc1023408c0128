"""OpenVINO runs the same files as ONNX Runtime: same scores, a cache that can only help, one line for what is wrong."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from sdpl.bundle import Bundle, sha256
from sdpl.errors import UserError
from sdpl.runtime import Recognizer
from sdpl.runtime.availability import precision_obstacle, target_obstacle
from sdpl.runtime.machine import fingerprint
from sdpl.targets import BACKENDS, PRECISIONS

openvino = BACKENDS["openvino"].load()  # without its usage data
HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture
def proof(exported_for_cpus):
    return Bundle.open(exported_for_cpus).proof()


@pytest.mark.parametrize("precision", ["fp32", "int8", pytest.param("bf16", marks=pytest.mark.skipif(
    not HAS_BF16, reason="no bfloat16 instructions"))])  # fmt: skip
def test_its_scores_are_pytorch_s(cpu_bundle, proof, precision):
    images, expected = proof
    with Recognizer.open(cpu_bundle, f"openvino:{precision}") as recognizer:
        np.testing.assert_allclose(recognizer.scores(images), expected.scores, atol=PRECISIONS[precision].score)
        assert recognizer.backend.describe()["library"].startswith("openvino 20")


def test_its_proof_is_in_the_bundle(exported_for_cpus):
    manifest = Bundle.open(exported_for_cpus).manifest
    target = manifest.targets["openvino:fp32"]
    assert target.status == "verified"
    assert target.proof().environment["backend"] == "openvino"
    assert target.built_with["openvino"] == openvino.__version__
    assert target.files == manifest.targets["cpu:fp32"].files  # one graph for both engines
    assert not list((exported_for_cpus / "cache").glob("openvino-*"))  # nothing of the exporting machine travels


def test_attention_is_onnx_runtime_s(cpu_bundle, proof):
    images, _ = proof
    with Recognizer.open(cpu_bundle, "openvino:fp32") as one, Recognizer.open(cpu_bundle, "cpu:fp32") as other:
        for ours, theirs in zip(one.attention(images), other.attention(images), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("backend", ["openvino:fp32", "cpu:fp32"])
def test_streams_divide_a_batch_and_serve_callers(cpu_bundle, proof, backend):
    images, _ = proof
    with Recognizer.open(cpu_bundle, backend) as recognizer:
        expected = recognizer.scores(images)
    with Recognizer.open(cpu_bundle, backend, threads=2, streams=2) as recognizer:
        assert recognizer.backend.describe()["threads"] == "2 threads in 2 streams"
        np.testing.assert_allclose(recognizer.scores(images), expected, atol=1e-6)
        np.testing.assert_allclose(recognizer.scores(images[:1]), expected[:1], atol=1e-6)
        with ThreadPoolExecutor(6) as pool:
            for i, result in enumerate(pool.map(lambda i: recognizer.scores(images[i % 6 : i % 6 + 1]), range(30))):
                np.testing.assert_allclose(result[0], expected[i % 6], atol=1e-6)


def test_images_that_may_not_be_written_or_have_gaps(cpu_bundle, proof):
    images = proof[0].copy()
    images.flags.writeable = False
    with Recognizer.open(cpu_bundle, "openvino:fp32") as recognizer:
        np.testing.assert_array_equal(recognizer.scores(images[::2]), recognizer.scores(images)[::2])
        assert recognizer.scores(images).flags.writeable  # a copy, not the engine's own memory


def test_a_second_opening_takes_what_was_compiled(cpu_bundle, proof):
    images, _ = proof
    with Recognizer.open(cpu_bundle, "openvino:fp32") as recognizer:
        expected = recognizer.scores(images)
        assert not recognizer.backend._engine.model.get_property("LOADED_FROM_CACHE")
    folder = cpu_bundle / "cache" / f"openvino-{fingerprint()}"
    (blob,) = folder.glob("*.blob")
    with Recognizer.open(cpu_bundle, "openvino:fp32") as recognizer:
        assert recognizer.backend._engine.model.get_property("LOADED_FROM_CACHE")
        np.testing.assert_array_equal(recognizer.scores(images), expected)
    if HAS_BF16:  # the other precision of the same graph keeps its own
        with Recognizer.open(cpu_bundle, "openvino:bf16") as recognizer:
            assert np.abs(recognizer.scores(images) - expected).max() > 1e-5
    blob.write_bytes(blob.read_bytes()[:1000])  # cut by a full disk
    with Recognizer.open(cpu_bundle, "openvino:fp32") as recognizer:
        np.testing.assert_array_equal(recognizer.scores(images), expected)


def test_a_cache_that_cannot_be_written_is_done_without(cpu_bundle, proof):
    (cpu_bundle / "cache").write_text("a file where the folder should be")
    with Recognizer.open(cpu_bundle, "openvino:fp32") as recognizer:
        assert recognizer.scores(proof[0]).shape == (6, 10)


def test_closed_means_closed(cpu_bundle):
    recognizer = Recognizer.open(cpu_bundle, "openvino:fp32")
    recognizer.close()
    with pytest.raises(RuntimeError, match="closed"):
        recognizer.scores(np.zeros((1, 64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(None, None, "is no ONNX graph of a bundle"), (b"Relu", b"Rleu", r"OpenVINO cannot load it \(.+\)")],
)
def test_a_damaged_graph_behind_a_right_hash_is_one_line(cpu_bundle, old, new, message):
    path = cpu_bundle / "model.onnx"
    path.write_bytes(path.read_bytes().replace(old, new) if old else b"not onnx")
    manifest = json.loads((cpu_bundle / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = {"sha256": sha256(path), "size": path.stat().st_size}
    (cpu_bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"model\.onnx: {message}"):
        Recognizer.open(cpu_bundle, "openvino:fp32")


def test_weights_in_a_second_file_are_checked_too(sdpl, checkpoint, tmp_path, monkeypatch):
    """As of a graph too large for one file."""
    monkeypatch.setattr("sdpl.export.onnx.MAX_BYTES", 10_000)
    out = tmp_path / "large.sdpl"
    words = ["export", checkpoint, "--out", out, "--target", "cpu:fp32", "--target", "openvino:fp32"]
    assert sdpl(*words).exit_code == 0
    assert Bundle.open(out).manifest.targets["cpu:fp32"].files == {"model": "model.onnx", "weights": "model.onnx.data"}
    data = out / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    for name in ("cpu:fp32", "openvino:fp32"):
        with pytest.raises(UserError, match=r"model\.onnx\.data: is not the file that was exported"):
            Recognizer.open(out, name)


def test_a_processor_without_bfloat16(fails, cpu_bundle, checkpoint, tmp_path, monkeypatch):
    core = SimpleNamespace(get_property=lambda device, name: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    line = precision_obstacle(BACKENDS["openvino"], "bf16")
    assert "has no bf16 instructions (AVX512-BF16, AMX or Arm's BF16): it would only be slower" in line
    assert target_obstacle(Bundle.open(cpu_bundle), "openvino:bf16") == line
    assert precision_obstacle(BACKENDS["openvino"], "fp32") is None
    out = tmp_path / "m.sdpl"
    assert f"--target openvino:bf16: {line}" in fails("export", checkpoint, "--target", "openvino:bf16", "--out", out)


def test_an_openvino_that_is_too_old_or_missing(cpu_bundle, monkeypatch):
    monkeypatch.setattr(openvino, "__version__", "2023.0.1-11005-abc")
    line = target_obstacle(Bundle.open(cpu_bundle), "openvino:fp32")
    assert line.startswith(f"openvino 2023.0.1-11005-abc is older than {BACKENDS['openvino'].floor}: pip install")
    with Recognizer.open(cpu_bundle) as recognizer:
        assert recognizer.target == "cpu:fp32"
        assert recognizer.skipped["openvino:fp32"] == line
        assert recognizer.chosen == "openvino:fp32 cannot run here"
    shutil.rmtree(cpu_bundle / "cache", ignore_errors=True)
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    assert "openvino is not installed" in target_obstacle(Bundle.open(cpu_bundle), "openvino:bf16")
