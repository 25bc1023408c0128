"""Stops at random times in every command, a full disk, and threads whose recognizer is closed."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdpl.atomic import SUFFIX
from sdpl.bundle import Bundle
from sdpl.cli import main
from sdpl.cli.entry import leave_when_stopped
from sdpl.runtime import Recognizer
from sdpl.signals import STOPS

from .material import Material
from .running import Totals, going_on

STATUSES = (0, 1, 2, 130)
THREADS = 8


def signals(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Commands, stopped at a random time: one line, one of our statuses, nothing left over."""
    out = made.folder / "stopped"
    commands = [
        ["train", str(made.config), "--out", str(out / "run")],
        ["export", str(made.checkpoint), "--out", str(out / "model.sdpl"), "--target", "cpu:fp32"],
        ["eval", str(made.bundle), str(made.annotations), "--json", str(out / "metrics.json")],
        ["predict", str(made.bundle), str(made.folder / "train")],
        ["data", "check", str(made.annotations)],
        ["verify", str(made.bundle)],
        ["data", "mask", str(made.annotations), "--proportion", "0.5", "--out", str(out / "part.csv"), "--force"],
    ]
    while time.monotonic() < until:
        shutil.rmtree(out / "run", ignore_errors=True)
        out.mkdir(exist_ok=True)
        words = commands[int(random.integers(len(commands)))]
        number = STOPS[int(random.integers(len(STOPS)))]
        status, errors = _stopped(lambda words=words: main(words), random.exponential(1.0), number)
        totals.cases += 1
        left = [path.name for path in out.rglob(f"*{SUFFIX}")]
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        is_clean = status in STATUSES and "Traceback" not in errors and len(lines) <= 1 and not left
        totals.fine += is_clean
        if not is_clean:
            what = f"{words[0]}, {number.name}: status {status}, left {left}, {errors[-300:]!r}"
            totals.findings.append({"part": "signals", "case": totals.cases, "what": what})


def programs(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Whole programs, as a shell starts them, stopped at a random time of their life: also while they load, and while
    Python frees what was loaded. They end well, or with status 130 and one line."""
    out = made.folder / "programs"
    commands = [
        ["score", str(made.bundle), str(made.folder / "train"), "--out", str(out / "scores")],
        ["predict", str(made.bundle), str(made.folder / "train")],
        ["info", str(made.bundle)],
        ["verify", str(made.bundle)],
        ["data", "check", str(made.annotations)],
    ]
    alone = [_program(words, out, None, STOPS[0], False)[2] for words in commands]
    while going_on(totals, until):
        which, to_group = int(random.integers(len(commands))), bool(random.random() < 0.3)
        number = STOPS[int(random.integers(len(STOPS)))]
        after_s = random.uniform(0.06, 1.05) * alone[which]  # before that Python itself starts
        status, errors, _ = _program(commands[which], out, after_s, number, to_group)
        totals.cases += 1
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        is_clean = "Traceback" not in errors and (status, len(lines)) in ((0, 0), (130, 1))
        totals.fine += is_clean
        if not is_clean:
            what = f"{commands[which][0]}, {number.name} after {after_s:.2f} s: status {status}, {errors[-300:]!r}"
            totals.findings.append({"part": "programs", "case": totals.cases, "what": what})


def _program(
    words: list[str], out: Path, after_s: float | None, number: signal.Signals, to_group: bool
) -> tuple[int, str, float]:
    """Exit status, standard error and seconds of a command that gets a signal, alone or with its whole group."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryFile() as errors:
        began = time.monotonic()
        program = subprocess.Popen(
            [sys.executable, "-m", "sdpl", *words], stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            program.wait(after_s)
        except subprocess.TimeoutExpired:
            (os.killpg if to_group else os.kill)(program.pid, number)
        status = program.wait(60)
        errors.seek(0)
        return status, errors.read().decode(errors="replace"), time.monotonic() - began


def full_disk(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Export and training on a file system with a random amount of room, where this process may mount one."""
    place = Path(tempfile.mkdtemp(prefix="campaign-disk-"))
    while time.monotonic() < until:
        room = int(random.integers(64 << 10, 12 << 20))
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", place], capture_output=True
        ).returncode:
            totals.findings.append({"part": "disk", "case": 0, "what": "no file system can be mounted here"})
            return
        try:
            if random.random() < 0.5:
                words = ["export", str(made.checkpoint), "--out", str(place / "model.sdpl"), "--target", "cpu:fp32"]
            else:
                words = ["train", str(made.config), "--out", str(place / "run")]
            status, errors = _stopped(lambda words=words: main(words), 600, signal.SIGINT)
            left = [path.name for path in place.rglob(f"*{SUFFIX}")]
            is_clean = status in (0, 2) and "Traceback" not in errors and not left
            if (place / "model.sdpl").exists():
                bundle = Bundle.open(place / "model.sdpl")
                is_clean = is_clean and all(bundle.file(name) for name in bundle.manifest.files)
        finally:
            subprocess.run(["umount", place], check=True)
        totals.cases += 1
        totals.fine += is_clean and status == 0
        totals.refused += is_clean and status == 2
        if not is_clean:
            what = f"{words[0]}, {room} bytes: status {status}, left {left}, {errors[-300:]!r}"
            totals.findings.append({"part": "disk", "case": totals.cases, "what": what})


def threads(totals: Totals, random: np.random.Generator, until: float, made: Material) -> None:
    """Eight threads score with one recognizer while it is closed, and a forked child opens its own: right scores, or
    RuntimeError("this recognizer is closed"), and no crash."""
    images, _ = Bundle.open(made.bundle).proof()
    with Recognizer.open(made.bundle, threads=1) as recognizer:
        expected = [recognizer.scores(images[:n]) for n in range(1, 4)]
    while time.monotonic() < until:
        seed = int(random.integers(1 << 31))
        child = multiprocessing.get_context("fork").Process(target=_share, args=(made.bundle, images, expected, seed))
        child.start()
        child.join(120)
        totals.cases += 1
        totals.fine += child.exitcode == 0
        if child.exitcode != 0:
            child.kill()
            what = f"seed {seed}: exit {child.exitcode}"
            totals.findings.append({"part": "threads", "case": totals.cases, "what": what})


def _share(path: Path, images: np.ndarray, expected: list[np.ndarray], seed: int) -> None:
    random, wrong = np.random.default_rng(seed), []
    recognizer = Recognizer.open(path, threads=1)

    def score(number: int) -> None:
        own = np.random.default_rng((seed, number))
        while True:
            n = int(own.integers(1, 4))
            try:
                found = recognizer.scores(images[:n])
            except Exception as error:
                if not isinstance(error, RuntimeError) or "closed" not in str(error):
                    wrong.append(error)
                return
            if not np.allclose(found, expected[n - 1], atol=1e-6):
                wrong.append(n)

    running = [threading.Thread(target=score, args=(i,)) for i in range(THREADS)]
    for thread in running:
        thread.start()
    time.sleep(random.uniform(0, 0.2))
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), Recognizer.open(path, threads=1) as own:
            os._exit(not np.allclose(own.scores(images[:2]), expected[1], atol=1e-6))
        os._exit(1)
    time.sleep(random.uniform(0, 0.1))
    recognizer.close()
    for thread in running:
        thread.join()
    os._exit(bool(wrong) or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _stopped(work: Callable[[], object], seconds: float, number: signal.Signals) -> tuple[int, str]:
    """Exit status and standard error of work in a child, which gets a signal after some seconds."""
    with tempfile.TemporaryFile() as errors:
        child = multiprocessing.get_context("fork").Process(target=_quiet, args=(work, errors.fileno()))
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # as when a program starts: none comes before it can answer
        child.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        child.join(seconds)
        if child.is_alive() and child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)
        child.join(60)
        if child.is_alive():
            child.kill()
            child.join()
        errors.seek(0)
        return child.exitcode or 0, errors.read().decode(errors="replace")


def _quiet(work: Callable[[], object], errors: int) -> None:
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave_when_stopped()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    work()
