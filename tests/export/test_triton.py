"""A bundle as a model repository of Triton."""

import dataclasses
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from serving import until

from sdpl.bundle import Bundle
from sdpl.export.triton import write_triton
from sdpl.kernels.gpu import Gpu
from sdpl.runtime.availability import invalid_engine, logger
from sdpl.targets import KINDS

VENV = os.environ.get("SDPL_TRITON_VENV")
NEEDS_VENV = "SDPL_TRITON_VENV names no environment with nvidia-pytriton==0.7.0, tritonclient==2.51.0 and numpy<2"


@pytest.fixture(scope="module")
def repository(bundle, tmp_path_factory) -> Path:
    from click.testing import CliRunner

    from sdpl.cli import main

    folder = tmp_path_factory.mktemp("triton") / "models"
    result = CliRunner().invoke(main, ["export", str(bundle), "--triton", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.output.count("wrote ") == 2
    return folder


@pytest.fixture
def venv() -> Path:
    if VENV is None:
        pytest.skip(NEEDS_VENV)
    return Path(VENV)


def test_the_onnx_model_has_standard_nodes_only_and_gives_the_proof_s_scores(repository, bundle):
    onnx = pytest.importorskip("onnx")
    path = repository / "model_onnx" / "1" / "model.onnx"
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    assert model.ir_version <= 10
    images, expected = Bundle.open(bundle).proof()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["scores"], {"image": images})[0], expected.scores, atol=1e-5)


def test_the_repository_carries_labels_and_a_whole_bundle(repository, bundle):
    categories = Bundle.open(bundle).manifest.categories
    for model in ("model", "model_onnx"):
        assert (repository / model / "labels.txt").read_text().split() == list(categories)
    copied = Bundle.open(repository / "model" / "1" / "model.sdpl")
    assert copied.manifest == Bundle.open(bundle).manifest
    for name in copied.manifest.files:
        copied.file(name)


def test_a_folder_of_something_else_is_left_alone(repository, bundle, fails, tmp_path):
    (tmp_path / "models" / "model").mkdir(parents=True)
    (tmp_path / "models" / "model" / "precious.txt").write_text("x")
    fails("export", bundle, "--triton", tmp_path / "models")
    assert (tmp_path / "models" / "model" / "precious.txt").read_text() == "x"


def test_a_tensorrt_engine_of_the_whole_model_where_it_can_be_built(bundle, sdpl, monkeypatch, tmp_path):
    """Through the API that TensorRT shares with TensorRT-RTX; only the package's name and the GPU are made up."""
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")
    result = sdpl("export", bundle, "--triton", tmp_path / "models")
    assert "skipped model_plan: --target tensorrt:fp32: tensorrt is not installed" in result.stderr.replace("\n", " ")
    assert not (tmp_path / "models" / "model_plan").exists()
    monkeypatch.setitem(KINDS, "tensorrt", dataclasses.replace(KINDS["tensorrt"], package="tensorrt_rtx", floor="1"))
    monkeypatch.setattr("sdpl.kernels.gpu.look", lambda device_id: Gpu("a GPU", "86", 24 << 30, "CUDA 13.0"))
    assert [path.name for path in write_triton(bundle, tmp_path / "models")] == ["model", "model_onnx", "model_plan"]
    plan = (tmp_path / "models" / "model_plan" / "1" / "model.plan").read_bytes()
    log = logger(tensorrt_rtx)
    assert "damaged" not in (invalid_engine(tensorrt_rtx.Runtime(log), plan, log) or "")
    config = (tmp_path / "models" / "model_plan" / "config.pbtxt").read_text()
    assert 'backend: "tensorrt"' in config
    assert 'name: "attention"' in config


PARSE = """
import json, sys
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
found = {}
for path in sys.argv[1:]:
    config = text_format.Parse(open(path, encoding="utf-8").read(), ModelConfig())
    found[config.name] = [config.backend, config.max_batch_size, config.parameters["categories"].string_value]
print(json.dumps(found))
"""


def test_the_configurations_are_what_the_published_proto_reads(repository, bundle, venv):
    paths = [str(repository / name / "config.pbtxt") for name in ("model", "model_onnx")]
    result = subprocess.run(
        [venv / "bin" / "python", "-c", PARSE, *paths], capture_output=True, text=True, check=True, env={}
    )
    found = json.loads(result.stdout)
    assert found["model"][:2] == ["python", 16]
    assert found["model_onnx"][:2] == ["onnxruntime", 16]
    assert json.loads(found["model"][2]) == list(Bundle.open(bundle).manifest.categories)


@pytest.mark.slow
def test_triton_serves_the_python_backend(repository, bundle, recognizer_scores, venv, tmp_path):
    packages = next((venv / "lib").glob("python3.*")) / "site-packages"
    if not packages.match(f"*/python{'.'.join(platform.python_version_tuple()[:2])}/*"):
        pytest.skip("Triton's environment has another Python")
    server = Path(shutil.copytree(packages / "pytriton" / "tritonserver", tmp_path / "tritonserver"))
    version = ".".join(platform.python_version_tuple()[:2])
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    (server / "bin" / "tritonserver").chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        server / "bin" / "tritonserver", f"--model-repository={repository}", "--model-control-mode=explicit",
        "--load-model=model", f"--backend-directory={server / 'backends'}", f"--http-port={port}", "--allow-grpc=false",
        "--allow-metrics=false", "--http-address=127.0.0.1",
    ]  # fmt: skip
    libraries = Path(sys.base_prefix) / "lib"
    environment = {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{packages}",
        "LD_LIBRARY_PATH": f"{libraries}:{packages / 'nvidia_pytriton.libs'}",
    }
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/v2/health/ready"), 60)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
        images, expected = recognizer_scores
        source = {"name": "image", "datatype": "UINT8", "shape": list(images.shape), "data": images.ravel().tolist()}
        body = json.dumps({"inputs": [source], "outputs": [{"name": "scores"}]}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/model/infer", body)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = np.array(json.load(answer)["outputs"][0]["data"]).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


@pytest.fixture
def recognizer_scores(bundle) -> tuple[np.ndarray, np.ndarray]:
    images, expected = Bundle.open(bundle).proof()
    return images[:2], expected.scores[:2]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
