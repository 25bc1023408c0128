"""What happens when bundles, processes and callers misbehave: real servers, one for each kind of trouble."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from serving import INFER, Callers, Server, binary_request, environment, replace, serving, until, with_manifest

from sdpl.bundle import PROOF, sha256
from sdpl.manifest import MANIFEST
from sdpl.server import supervisor
from sdpl.server.messages import HEALTH, SERVICE, message, methods

NOT_SERVING = b"\x08\x02"  # as everyone has it
IN_HAND = 'sdpl_in_hand{model="model"}'


@pytest.fixture
def own(bundle, tmp_path) -> Path:
    """A bundle of this test's own."""
    return Path(shutil.copytree(bundle, tmp_path / "model.sdpl"))


def health(server: Server, service: str) -> bytes:
    """What gRPC's own health check says, on a connection of its own: any front end may answer."""
    asked, _ = methods(HEALTH)["Check"]
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
        return channel.unary_unary(f"/{HEALTH}/Check")(asked(service=service).SerializeToString(), timeout=30)


def wrong_proof(folder: Path) -> None:
    """Scores that the model does not give, with a fitting hash."""
    tensors = load_file(folder / PROOF)
    save_file(tensors | {"scores": 1 - tensors["scores"]}, folder / PROOF)
    record = {"sha256": sha256(folder / PROOF), "size": (folder / PROOF).stat().st_size}
    with_manifest(folder, lambda content: content["files"].update({PROOF: record}))


@pytest.mark.slow
def test_a_bundle_is_swapped_under_load_and_a_bad_one_is_not(own, bundle, images):
    body, headers = binary_request(images[:1], [{"name": "scores"}])
    with serving(own, "--workers", "2", "--threads", "1", "--allow-repository") as server:
        callers = Callers(server, body, headers)
        replace(own, lambda folder: with_manifest(folder, lambda c: c.update(thresholds=[0.25] * 10)))
        until(lambda: server.get("/v2/models/model")[1]["sdpl"]["thresholds"][0] == 0.25)
        replace(own, wrong_proof)
        until(lambda: "does not give PyTorch's answers" in str(server.get("/v2/health/ready")))
        assert server.get("/v2/health/ready")[0] == 200
        assert server.post("/v2/repository/models/model/load")[0] == 400
        answers = callers.stop()
        assert {status for status, _ in answers} == {200}
        assert len({body for _, body in answers}) == 1
        assert server.metric('sdpl_reloads_total{model="model"}') == 1
        assert server.post("/v2/repository/models/model/unload") == (200, {})
        until(lambda: server.request("POST", INFER, body, headers)[0] == 503)  # the other front end hears of it too
        until(lambda: server.get("/v2/health/ready")[0] == 503)
        until(lambda: server.post("/v2/repository/index")[1][0]["state"] == "UNAVAILABLE")
        for service in ("", SERVICE, "model"):
            until(lambda service=service: health(server, service) == NOT_SERVING)
        until(lambda: server.metric('sdpl_model_unloaded{model="model"}') == 1)
        replace(own, lambda folder: shutil.copyfile(bundle / PROOF, folder / PROOF))
        replace(own, lambda folder: shutil.copyfile(bundle / MANIFEST, folder / MANIFEST))
        assert server.post("/v2/repository/models/model/load") == (200, {})
        until(lambda: server.request("POST", INFER, body, headers)[0] == 200)
        assert server.stop() == 0


@pytest.mark.slow
def test_a_bundle_that_is_copied_file_by_file_behind_a_link_is_taken_when_it_is_whole(own, bundle, tmp_path):
    link = tmp_path / "current.sdpl"
    link.symlink_to(own)
    with serving(f"model={link}", "--workers", "1", "--threads", "1") as server:
        other = tmp_path / "other.sdpl"
        other.mkdir()
        shutil.copyfile(bundle / MANIFEST, other / MANIFEST)
        with_manifest(other, lambda content: content.update(thresholds=[0.25] * 10))
        link.unlink()
        link.symlink_to(other)
        until(lambda: "is missing from the bundle" in str(server.get("/v2/health/ready")))
        assert server.metric('sdpl_reload_failures_total{model="model"}') == 1
        shutil.copytree(bundle, other, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        until(lambda: server.get("/v2/models/model")[1]["sdpl"]["thresholds"][0] == 0.25)
        assert server.get("/v2/health/ready")[1]["models"][0]["reason"] == ""
        assert server.metric('sdpl_model_ready{model="model"}') == 1


def test_a_bundle_that_fails_its_proof_is_never_served(own):
    wrong_proof(own)
    command = ["serve", str(own), "--http-port", "0", "--no-grpc"]
    result = subprocess.run(
        [sys.executable, "-m", "sdpl", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 2
    assert "does not give PyTorch's answers on this machine" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_processes_that_die_are_started_again(own, images):
    body, headers = binary_request(images[:1])
    with serving(own, "--workers", "2", "--threads", "1", "--devices", "cpu,cpu") as server:
        callers = Callers(server, body, headers)
        for kind in ("engine", "frontend"):
            before = server.children(kind)
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            until(lambda kind=kind, before=before: len(set(server.children(kind)) - set(before)) == 1)
            until(lambda: server.request("POST", INFER, body, headers)[0] == 200)
        answers = callers.stop()
        good = sum(status == 200 for status, _ in answers)
        assert {status for status, _ in answers} <= {200, 503, 0}  # 0: the front end that was killed had it
        assert good > len(answers) / 2
        until(lambda: server.metric(IN_HAND) == 0)
        assert any("is started again" in line for line in server.lines)
        assert server.metric("sdpl_restarts_total") == 2


@pytest.mark.slow
def test_processes_are_started_again_though_nobody_reads_what_is_said(bundle):
    command = [sys.executable, "-m", "sdpl", "serve", str(bundle), "--http-port", "0", "--no-grpc", "--workers", "1"]
    with subprocess.Popen(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        server = Server(process, int(process.stdout.readline().rstrip("/\n").rsplit(":", 1)[1]), None, [])
        process.stderr.close()
        try:
            for _ in range(2):
                before = server.children("frontend")
                os.kill(before[0], signal.SIGKILL)
                until(lambda before=before: server.children("frontend") not in (before, []), 10)
        finally:
            process.terminate()


def test_overload_is_refused_early_and_what_is_accepted_is_answered_in_time(own, images):
    body, headers = binary_request(np.repeat(images[:1], 16, axis=0))
    with serving(own, "--workers", "1", "--threads", "1", "--max-wait-ms", "15", "--max-batch", "4") as server:
        callers = Callers(server, body, headers, count=12)
        until(lambda: {200, 503} <= {status for status, _ in callers.answers})
        status, answer_headers, answer = 0, {}, b""
        while status != 503:
            status, answer_headers, answer = server.request("POST", INFER, body, headers)
        answers = callers.stop()
        assert {status for status, _ in answers} == {200, 503}
        assert "overloaded" in json.loads(answer)["error"]
        assert int(answer_headers["retry-after"]) >= 1
        assert server.metric('sdpl_failures_total{model="model",reason="overloaded"}') > 0
        assert server.metric(IN_HAND) == 0


@pytest.mark.slow
def test_sigterm_finishes_what_was_accepted(own, images):
    body, headers = binary_request(np.repeat(images, 10, axis=0))
    with serving(own, "--workers", "1", "--threads", "1") as server:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(server.request("POST", INFER, body, headers)[0]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        until(lambda: server.metric(IN_HAND) >= 60)
        assert server.stop() == 0
        for thread in threads:
            thread.join(30)
        assert [status for status in found if status == 200]
        with pytest.raises(OSError, match="refused"):
            server.get("/v2/health/live")


def needs_token(channel: grpc.Channel, name: str, metadata: tuple = (), service: str = SERVICE) -> bool:
    """Whether a method refuses an empty request for its token."""
    try:
        channel.unary_unary(f"/{service}/{name}")(b"", timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


@pytest.mark.slow
def test_token_tls_and_limits(own, images, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    log = tmp_path / "access.jsonl"
    words = ("--token-file", token, "--access-log", log, "--max-connections", "8", "--max-body-mb", "1")
    with serving(own, "--workers", "1", "--threads", "1", *words) as server:
        assert server.get("/v2/health/live")[0] == 200
        status, headers, _ = server.request("GET", "/v2/models/model")
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        bearer = {"Authorization": "Bearer 0123456789abcdef"}
        assert server.request("GET", "/v2/models/model", headers=bearer)[0] == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            metadata = (("authorization", "Bearer 0123456789abcdef"),)
            for name in methods():
                assert needs_token(channel, name) == (name not in ("ServerLive", "ServerReady", "ModelReady")), name
                assert not needs_token(channel, name, metadata), name
            assert not needs_token(channel, "Check", service=HEALTH)
        for path in (
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/model/ready",
            "/v2/models/model/versions/1/ready",
        ):
            assert server.get(path)[0] == 200
        paths = (
            "/v2",
            "/v2/models/model/config",
            "/v2/models/ready",
            "/v2/models/model/x/ready",
            "/metrics",
            "/nowhere",
        )
        for path in (*paths, "/v2/health/live/ready", "/v2/repository/index"):
            assert server.get(path)[0] == 401, path
        held = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(40)]
        until(lambda: held[-1].recv(12) == b"HTTP/1.1 503")
        for sock in held:
            sock.close()
        until(lambda: server.get("/v2/health/live")[0] == 200)
        assert server.stop() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["status"] for line in lines if line["transport"] == "http"} == {200, 401}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_on_both_transports(own, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", *words, "-keyout", str(key), "-out", str(certificate), "-days", "2"]
    subprocess.run(made, check=True, capture_output=True)
    files = ("--tls-certificate", certificate, "--tls-key", key)
    with serving(own, "--workers", "1", "--threads", "1", *files) as server:
        context = ssl.create_default_context(cafile=certificate)
        url = f"https://127.0.0.1:{server.http_port}/v2/health/ready"
        with urllib.request.urlopen(url, timeout=10, context=context) as answer:
            assert json.load(answer)["ready"]
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{server.grpc_port}", credentials) as channel:
            ask = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerReady",
                message("ServerReadyRequest").SerializeToString,
                message("ServerReadyResponse").FromString,
            )
            assert ask(message("ServerReadyRequest")(), timeout=10).ready


def test_wrong_words_end_in_one_line(fails, bundle, tmp_path):
    short = tmp_path / "short"
    short.write_text("abc")
    assert "no such bundle" in fails("serve", tmp_path / "none.sdpl")
    assert "two bundles are called" in fails("serve", bundle, bundle)
    assert "letters, digits" in fails("serve", f"a/b={bundle}")
    assert "--devices 'gpu'" in fails("serve", bundle, "--devices", "gpu")
    assert "--workers '0'" in fails("serve", bundle, "--workers", "0")
    assert "at least 16 characters" in fails("serve", bundle, "--token-file", short)
    assert "give both" in fails("serve", bundle, "--tls-key", short)
    assert "cannot be used" in fails("serve", bundle, "--tls-key", short, "--tls-certificate", short)
    assert "cannot be written" in fails("serve", bundle, "--access-log", tmp_path / "no" / "log")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "in use): choose another" in fails("serve", bundle, "--http-port", port, "--no-grpc")


@pytest.mark.parametrize(
    ("given", "device", "visible"),
    [
        (None, "1", "1"),
        ("", "1", ""),
        ("4,6", "1", "6"),
        ("4,6", "0", "4"),
        ("GPU-aa, GPU-bb", "1", "GPU-bb"),
        ("4,6", "cpu", ""),
        ("4,6", "auto", None),
        ("4", "3", ""),
    ],
)
def test_a_device_is_counted_among_those_that_a_scheduler_has_given(monkeypatch, given, device, visible):
    """Slurm and Kubernetes say which GPUs are ours in CUDA_VISIBLE_DEVICES; the others are somebody else's."""
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert supervisor._device(device).get("CUDA_VISIBLE_DEVICES") == visible
