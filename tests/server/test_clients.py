"""Unmodified clients of others: tritonclient over HTTP and gRPC, in an environment of its own."""

import os
import subprocess

import numpy as np
import pytest

VENV = os.environ.get("SDPL_TRITONCLIENT_VENV") or os.environ.get("SDPL_TRITON_VENV")
PROGRAM = """
import sys
import numpy as np
import tritonclient.grpc, tritonclient.http
images, photo = np.load(sys.argv[1]), open(sys.argv[2], "rb").read()
for module, port in ((tritonclient.http, sys.argv[3]), (tritonclient.grpc, sys.argv[4])):
    client = module.InferenceServerClient("127.0.0.1:" + port)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("model")
    client.get_server_metadata(), client.get_model_metadata("model"), client.get_model_config("model")
    client.get_inference_statistics("model"), client.get_model_repository_index()
    pixels = module.InferInput("image", list(images.shape), "UINT8")
    pixels.set_data_from_numpy(images)
    wanted = [module.InferRequestedOutput(name) for name in ("scores", "attention", "labels")]
    answer = client.infer("model", [pixels], outputs=wanted, parameters={"threshold": 0.0})
    assert answer.as_numpy("labels").shape == answer.as_numpy("scores").shape
    assert answer.as_numpy("attention").ndim == 4
    best = client.infer("model", [pixels], outputs=[module.InferRequestedOutput("scores", class_count=2)])
    assert best.as_numpy("scores").shape == (len(images), 2)
    files = module.InferInput("jpeg", [2, 1], "BYTES")
    files.set_data_from_numpy(np.array([[photo], [photo]], dtype=object))
    assert client.infer("model", [files]).as_numpy("scores").shape[0] == 2
    for wrong in ("no-such-model",):
        try:
            client.infer(wrong, [pixels])
        except tritonclient.utils.InferenceServerException as error:
            assert "no model 'no-such-model'" in str(error), error
        else:
            raise AssertionError("it was answered")
    np.save(sys.argv[1] + "." + module.__name__, answer.as_numpy("scores"))
"""


@pytest.mark.slow
def test_tritonclient(server, recognizer, images, scenes, tmp_path):
    if VENV is None:
        pytest.skip("SDPL_TRITONCLIENT_VENV names no environment with tritonclient[all]")
    np.save(tmp_path / "images", images[:3])
    words = [tmp_path / "images.npy", scenes / "test" / "000000.jpg", server.http_port, server.grpc_port]
    command = [f"{VENV}/bin/python", "-c", PROGRAM, *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={})
    assert result.returncode == 0, result.stderr
    for module in ("http", "grpc"):
        scores = np.load(tmp_path / f"images.npy.tritonclient.{module}.npy")
        np.testing.assert_allclose(scores, recognizer.scores(images[:3]), atol=1e-6)
