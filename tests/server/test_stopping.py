"""Signals while a server starts, and how its processes end."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from serving import environment, until

LINE = "error: interrupted; nothing half-written is left.\n"
LEAVES = """
import sys, threading, time
import numpy as np
from sdpl.runtime import Recognizer
from sdpl.server.process import _leave

recognizer, begun = Recognizer.open(sys.argv[1], "cpu:fp32", threads=1), threading.Event()

def score():
    while True:
        recognizer.scores(np.zeros((16, 64, 64, 3), np.uint8))
        begun.set()

threading.Thread(target=score, daemon=True).start()
begun.wait()
_leave(lambda: print("done"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["processes", "engine"])
def test_a_signal_before_it_serves_ends_in_one_line(bundle, number, moment):
    """When the first process was started, and when the engine is about to open the bundle."""
    command = [sys.executable, "-m", "sdpl", "serve", str(bundle), "--http-port", "0", "--no-grpc", "--threads", "1"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(), start_new_session=True
    ) as process:
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.append(process.stdout.read()))
        reader.start()
        pids: list[str] = []

        def is_there() -> bool:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            pids[:] = [pid for pid in children if "sdpl.server.process" in read(pid, "cmdline")]
            return any(moment == "processes" or "onnxruntime" in read(pid, "maps") for pid in pids)

        until(is_there, 60)
        for pid in pids:  # as systemd does; theirs are not to be stopped by it
            os.kill(int(pid), number)
        process.send_signal(number)
        assert process.wait(30) == 130
        reader.join(30)
    assert found == [LINE]
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 30)  # they end when they see that it has


@pytest.mark.parametrize("_", range(3))
def test_a_process_leaves_while_a_thread_is_in_the_engine(bundle, _):
    result = subprocess.run(
        [sys.executable, "-c", LEAVES, str(bundle)],
        capture_output=True, text=True, timeout=60, check=False, env=environment(),
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def read(pid: str, name: str) -> str:
    """What the system says of a process; nothing of one that has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""
