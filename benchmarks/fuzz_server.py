"""Malformed requests against a running sdpl-serve on this machine, with good ones between them that must stay right.

    python benchmarks/fuzz_server.py BUNDLE [--requests 100000] [--out docs/benchmarks/fuzz_server.json]

Starts its own server on the loopback interface. Requests are good ones with bytes changed, cut, doubled or put in,
heads and sizes that lie, bodies on requests that take none, and structured JSON with wrong values; a share goes over
gRPC. Between them a good request is sent, whose scores must be those of the recognizer. Counted: what was answered,
the memory of the server's processes at the start and the end, that all processes are still the same, and that they
wrote nothing to their log.
"""

import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import grpc
import numpy as np

from sdpl.runtime import Recognizer
from sdpl.runtime.environment import environment
from sdpl.server.messages import message

GOOD_EVERY = 100  # requests
GRPC_SHARE = 0.1
CALLERS = 8
WAIT_S = 0.05  # for an answer to a request that may not be whole
METHODS = ["GET", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "CONNECT", "POST"]
PATHS = [
    "/",
    "/v2",
    "/v2/health/live",
    "/metrics",
    "/openapi.json",
    "/v2/models/model",
    "/v2/models/model/infer",
    "/nowhere",
]
VALUES = [None, True, -1, 0, 1e308, "", "x" * 300, [], {}, [[]], 2**70, "\ud800", [0] * 50, {"a": {"b": {}}}]


class Fuzzer:
    """Makes requests from a seed."""

    def __init__(self, seed: int, side: int):
        self.random = random.Random(seed)
        image = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        self.image = image
        source = {"name": "image", "datatype": "UINT8", "shape": [1, side, side, 3]}
        source["parameters"] = {"binary_data_size": image.nbytes}
        self.document = {"id": "a", "inputs": [source], "outputs": [{"name": "scores"}], "parameters": {"top_k": 1}}

    def good(self) -> bytes:
        return self._http(json.dumps(self.document).encode(), self.image.tobytes())

    def bad(self) -> bytes:
        """A request with something wrong; a few come out right all the same."""
        kind = self.random.randrange(8)
        if kind == 0:
            return self._changed(self.good())
        if kind == 1:
            return self._changed(self.good()[: self.random.randrange(400)])
        if kind == 2:
            return self._lying_head()
        if kind == 3:
            return self._http(json.dumps(self._wrong(self.document)).encode(), self.image.tobytes())
        if kind == 4:
            return self._http(self._changed(json.dumps(self.document).encode()), self._changed(self.image.tobytes()))
        if kind >= 6:
            return self._unwanted_body()
        path = self.random.choice(["/v2/models/%00/infer", "/v2/repository/index", "/recognize", "/v2/models//config"])
        body = self.random.randbytes(self.random.randrange(200))
        return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def bad_message(self) -> bytes:
        """A serialized ModelInferRequest, changed."""
        request = message("ModelInferRequest")(model_name="model")
        request.inputs.add(name="image", datatype="UINT8", shape=self.image.shape)
        request.raw_input_contents.append(self.image.tobytes()[: self.random.choice([0, 10, self.image.nbytes])])
        return self._changed(request.SerializeToString())

    def _http(self, text: bytes, data: bytes) -> bytes:
        head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {len(text)}\r\n"
        return f"{head}Content-Length: {len(text) + len(data)}\r\n\r\n".encode() + text + data

    def _unwanted_body(self) -> bytes:
        """A body on a request that needs none, as it should be or changed, with another request behind it."""
        method, path = self.random.choice(METHODS), self.random.choice(PATHS)
        body = self.random.randbytes(self.random.choice([0, 1, 200, 70_000]))
        head = f"{method} {path} HTTP/1.{self.random.randrange(2)}\r\n".encode()
        head += self.random.choice([b"", b"Expect: 100-continue\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
        if self.random.random() < 0.5:
            framed = b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"")
            framed += b"0\r\n\r\n"
        else:
            framed = b"Content-Length: %d\r\n\r\n" % len(body) + body
        whole = head + framed + self.random.choice([b"", b"GET /v2 HTTP/1.1\r\n\r\n"])
        return self._changed(whole) if self.random.random() < 0.3 else whole

    def _lying_head(self) -> bytes:
        good, number = self.good(), str(self.random.choice([-1, 0, 1, 7, 10**6, 10**10, 10**30, "x", "1,1", ""]))
        name = self.random.choice([b"Content-Length", b"Inference-Header-Content-Length"])
        return re.sub(name + rb": \d+", name + b": " + number.encode(), good, count=1)

    def _changed(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.randrange(1, 6)):
            at, size = self.random.randrange(len(changed) + 1), self.random.randrange(1, 20)
            action = self.random.randrange(4)
            if action == 0:
                del changed[at : at + size]
            elif action == 1:
                changed[at:at] = self.random.randbytes(size)
            elif action == 2:
                changed[at:at] = changed[at : at + size]
            elif at < len(changed):
                changed[at] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def _wrong(self, value):
        """JSON with one value somewhere replaced."""
        if isinstance(value, dict) and value and self.random.random() < 0.8:
            key = self.random.choice(list(value))
            return {**value, key: self._wrong(value[key])}
        if isinstance(value, list) and value and self.random.random() < 0.8:
            at = self.random.randrange(len(value))
            return [*value[:at], self._wrong(value[at]), *value[at + 1 :]]
        return self.random.choice(VALUES)


def ask(port: int, request: bytes, wait_s: float) -> tuple[str, bytes]:
    """The status and the body of the first answer; "none" when there is none within `wait_s`."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as sock:
            sock.sendall(request)
            while True:
                head, found, body = received.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                if found and (length is None or request.startswith(b"HEAD") or len(body) >= int(length[1])):
                    return head[9:12].decode(), body
                data = sock.recv(65536)
                if not data:
                    return "closed", b""
                received += data
    except TimeoutError:
        return "none", b""
    except OSError:
        return "reset", b""


def memory_mb(pids: list[str]) -> float:
    status = "".join(Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(kb) for kb in re.findall(r"RssAnon:\s+(\d+)", status)) / 1024


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=100_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(bundle: Path, requests: int, seed: int, out: Path | None) -> None:
    command = [sys.executable, "-m", "sdpl", "serve", f"model={bundle}", "--http-port", "0", "--grpc-port", "0"]
    command += ["--workers", "1", "--threads", "1"]
    with Recognizer.open(bundle, "cpu:fp32", threads=1) as recognizer:
        fuzzer = Fuzzer(seed, recognizer.image_size)
        expected = recognizer.scores(fuzzer.image)[0]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            ports = [int(re.search(r":(\d+)/?$", process.stdout.readline())[1]) for _ in range(2)]
            result = run(fuzzer, expected, process.pid, ports, requests)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        log.seek(0)
        written = log.read()
    assert not written, written
    result |= {"environment": environment(), "seed": seed, "exit_status": process.returncode}
    print(json.dumps(result, indent=2))
    if out is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


def run(fuzzer: Fuzzer, expected: np.ndarray, pid: int, ports: list[int], requests: int) -> dict:
    statuses: Counter[str] = Counter()
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    checked, begin, memory = 0, time.monotonic(), {}
    with grpc.insecure_channel(f"127.0.0.1:{ports[1]}") as channel, ThreadPoolExecutor(CALLERS) as pool:
        stub = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for i in range(0, requests, GOOD_EVERY):
            status, body = ask(ports[0], fuzzer.good(), 30)
            scores = json.loads(body)["outputs"][0]["data"] if status == "200" else status
            np.testing.assert_allclose(scores, expected, atol=1e-5, err_msg=f"after {i} requests")
            checked += 1
            if i in (requests // 10, requests - GOOD_EVERY):
                memory[f"mb_after_{i}"] = memory_mb(pids)
            overs = [fuzzer.random.random() < GRPC_SHARE for _ in range(GOOD_EVERY)]
            jobs = [(stub, fuzzer.bad_message()) if over else (ports[0], fuzzer.bad()) for over in overs]
            statuses.update(pool.map(send, jobs))
    same = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() == pids
    assert same, "a process of the server died"
    return {
        "requests": requests,
        "good_between": checked,
        "seconds": time.monotonic() - begin,
        "answers": dict(sorted(statuses.items())),
        "processes_are_the_same": same,
        **memory,
    }


def send(job: tuple) -> str:
    """Send one request to a port, or through a gRPC method: what came back."""
    way, data = job
    return "http " + ask(way, data, WAIT_S)[0] if isinstance(way, int) else "grpc " + grpc_status(way, data)


def grpc_status(stub, data: bytes) -> str:
    try:
        stub(data, timeout=10)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


if __name__ == "__main__":
    main()
