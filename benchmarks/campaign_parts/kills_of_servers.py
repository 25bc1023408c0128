"""kill -9 of a server's engines, front ends and supervisor under load: no wrong answer, all is started again, and
nothing stays behind.

The server is `sdpl serve`, with two engines and two front ends; callers ask for scores of known images all the time.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdpl.bundle import Bundle
from sdpl.runtime import Recognizer

from .children import found
from .material import Material
from .running import Totals, going_on

CALLERS = 2
AGAIN_S = 120  # for a process to be started again, on a machine that is busy
ALLOWED = (0, 503)  # beside right answers: the connection was lost with its process; no engine is ready
Request = tuple[bytes, dict[str, str], np.ndarray]  # body, headers, the scores that belong to it


def kill_server(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """One server, whose processes are killed one after the other, and at the end its supervisor."""
    requests = _requests(made.bundle)
    temporary = made.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    before = _traces(temporary)
    process, port = _start(made.bundle, temporary)
    callers = Callers(port, requests)
    try:
        while going_on(totals, until):
            time.sleep(random.uniform(0, 0.5))
            children = _children(process.pid)  # four, since the last one was waited for
            child = children[int(random.integers(len(children)))]
            with contextlib.suppress(ProcessLookupError):  # it was one that had just ended
                os.kill(child, signal.SIGKILL)
            totals.cases += 1
            count = callers.right
            _check(
                totals, _soon(lambda gone=child: len(set(_children(process.pid)) - {gone}) == 4), "not started again"
            )
            _check(totals, _soon(lambda at=count: callers.right > at + CALLERS), "no answers afterwards")
    finally:
        last = [*_children(process.pid), process.pid]
        process.kill()
        process.wait()
    totals.cases += 1
    _check(totals, _soon(lambda: not any(map(_lives, last))), "processes outlive their supervisor")
    callers.stop()
    _check(totals, not callers.wrong, f"wrong answers: {callers.wrong[:3]}")
    _check(totals, _is_free(port), "its port is still taken")
    process, _ = _start(made.bundle, temporary)  # the next server takes away what a killed one left
    process.send_signal(signal.SIGTERM)
    _check(totals, process.wait(AGAIN_S) == 0, "the next server did not end well")
    _check(totals, _traces(temporary) == before, f"left over: {sorted(_traces(temporary) - before)}")
    totals.fine = totals.cases - len(totals.findings)


class Callers:
    """Threads that ask for scores, each on a connection of its own, and compare them."""

    def __init__(self, port: int, requests: list[Request]):
        self.right, self.wrong = 0, list[str]()
        self._port, self._requests, self._going = port, requests, True
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._going = False
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        while self._going:
            number = (number + 1) % len(self._requests)
            body, headers, expected = self._requests[number]
            status, answer = _post(self._port, body, headers)
            if status == 200:
                scores = np.array(json.loads(answer)["outputs"][0]["data"], np.float32)
                if scores.shape == expected.shape and np.allclose(scores, expected, atol=1e-5):
                    self.right += 1
                else:
                    self.wrong.append(f"image {number}: {answer[:200]!r}")
            elif status not in ALLOWED:
                self.wrong.append(f"status {status}: {answer[:200]!r}")
            time.sleep(0.02)


def _requests(path: Path) -> list[Request]:
    images, _ = Bundle.open(path).proof()
    made = []
    with Recognizer.open(path, threads=1) as recognizer:
        for image in images:
            source = {"name": "image", "datatype": "UINT8", "shape": [1, *image.shape]}
            source["parameters"] = {"binary_data_size": image.nbytes}
            text = json.dumps({"inputs": [source], "outputs": [{"name": "scores"}]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(text))}
            made.append((text + image.tobytes(), headers, recognizer.scores(image[None])[0]))
    return made


def _post(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status 0 where the connection was lost, or refused."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/v2/models/model/infer", body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def _start(bundle: Path, temporary: Path) -> tuple["subprocess.Popen[str]", int]:
    words = [str(bundle), "--devices", "cpu,cpu", "--workers", "2", "--threads", "1", "--http-port", "0", "--no-grpc"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdpl", "serve", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary)},
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "serving " in line:
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, int(line.rstrip("/\n").rsplit(":", 1)[1])
    raise RuntimeError(f"the server ended with status {process.wait()}")


def _soon(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + AGAIN_S
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _check(totals: Totals, is_well: bool, what: str) -> None:
    if not is_well:
        found(totals, "kill serve", what)


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _lives(pid: int) -> bool:
    """A zombie, which waits for whoever adopted it, does not live."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _traces(temporary: Path) -> set[str]:
    """What servers left: shared memory with a name, and the folders of their sockets."""
    return {str(path) for path in (*Path("/dev/shm").glob("*sdpl*"), *temporary.glob("*sdpl*"))}
