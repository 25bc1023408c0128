"""A real server, started through the command line, and small clients for it."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sdpl.files import replace_folder
from sdpl.manifest import MANIFEST

INFER = "/v2/models/model/infer"
START_S = 60


class Server:
    """A running `sdpl-serve`. url-less: `get` and `post` speak to it."""

    def __init__(self, process: subprocess.Popen, http_port: int, grpc_port: int | None, lines: list[str]):
        self.process, self.http_port, self.grpc_port, self.lines = process, http_port, grpc_port, lines

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict | None = None):
        """status, headers and body of one request on a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def get(self, path: str):
        status, _, body = self.request("GET", path)
        return status, json.loads(body)

    def post(self, path: str, content: object = None):
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        status, _, answer = self.request("POST", path, body)
        return status, json.loads(answer)

    def metric(self, name: str) -> float:
        """A value of /metrics, by its whole name with labels."""
        _, _, body = self.request("GET", "/metrics")
        return next(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(name + " "))

    def children(self, kind: str) -> list[int]:
        """Process ids of its engines or front ends."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in pids if kind in Path(f"/proc/{pid}/cmdline").read_text()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def environment() -> dict[str, str]:
    """Of a process that finds what this one finds."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@contextmanager
def serving(*words: object, variables: dict[str, str] | None = None) -> Iterator[Server]:
    """`sdpl serve WORDS` on free ports, ready; ended and waited for on the way out. variables: of its environment."""
    command = [sys.executable, "-m", "sdpl", "serve", *map(str, words), "--http-port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment() | (variables or {}),
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        yield Server(process, *_ports(process, lines, "--no-grpc" not in words), lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(10)
        process.stdout.close()


class Callers:
    """Threads that send the same request again and again, and keep what they got."""

    def __init__(self, server: Server, body: bytes, headers: dict, count: int = 4):
        self._server, self._body, self._headers = server, body, headers
        self.answers: list[tuple[int, bytes]] = []
        self._going = True
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while self._going:
            try:
                status, _, body = self._server.request("POST", INFER, self._body, self._headers)
            except OSError as error:
                status, body = 0, str(error).encode()
            self.answers.append((status, body))

    def stop(self) -> list[tuple[int, bytes]]:
        self._going = False
        for thread in self._threads:
            thread.join(60)
        return self.answers


def until(true, seconds: float = 30) -> None:
    """Wait until something is true; fails when it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def _ports(process: subprocess.Popen, lines: list[str], with_grpc: bool) -> tuple[int, int | None]:
    def found(word: str) -> int | None:
        line = next((line for line in lines if word in line), None)
        return int(line.rstrip("/\n").rsplit(":", 1)[1]) if line else None

    until(lambda: process.poll() is not None or (found("serving ") and (found("gRPC:") or not with_grpc)), START_S)
    assert process.poll() is None, "".join(lines)
    return found("serving "), found("gRPC:")


def replace(path: Path, change) -> None:
    """Put a changed copy in a bundle's place, in one step, as sdpl-export does."""
    with replace_folder(path, lambda _: True) as folder:
        shutil.copytree(path, folder, dirs_exist_ok=True)
        change(folder)


def with_manifest(folder: Path, change) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def binary_request(images: np.ndarray, outputs: object = None, **parameters: object) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an inference request whose images [B,S,S,3] follow the JSON as bytes."""
    source = {"name": "image", "datatype": "UINT8", "shape": list(images.shape)}
    source["parameters"] = {"binary_data_size": images.nbytes}
    document: dict = {"inputs": [source], "parameters": parameters}
    text = json.dumps(document | ({"outputs": outputs} if outputs else {})).encode()
    return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}
