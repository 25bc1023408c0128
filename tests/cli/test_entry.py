"""Where commands start: a stop while they load, and what each console script is."""

import importlib
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from loading import loaded_by

from sdpl.cli import entry, main

INTERRUPTED_AT = """
import os, sys
class Stop:
    def find_spec(name, *rest):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Stop)
from sdpl.cli.entry import train
sys.argv[1:] = ["gone.yaml", "--out", "run"]
train()
"""
AT_THE_END = """
import atexit, os, sys
class Library:
    def find_spec(name, *rest):
        if name == "click":
            atexit.register(lambda: os.kill(os.getpid(), 15))
sys.meta_path.insert(0, Library)
from sdpl.cli.entry import info
sys.argv[1:] = ["--help"]
info()
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("number", [1, 2, 15])
@pytest.mark.parametrize("module", ["click", "rich.progress", "sdpl.cli.bars", "sdpl.train.config"])
def test_a_stop_while_a_command_loads_is_our_line(tmp_path, module, number):
    ended = run(INTERRUPTED_AT.format(module=module, number=number), tmp_path)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr in (
        "error: interrupted; nothing half-written is left.\n",
        "error: interrupted; no epoch was finished.\n",
    )


def test_a_stop_after_a_command_is_our_line(tmp_path):
    ended = run(AT_THE_END, tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "error: interrupted; nothing half-written is left.\n")
    assert "Usage: sdpl-info" in ended.stdout


DURING_THE_END = """
import os, sys
class Freed:
    def __del__(self, kill=os.kill, own=os.getpid()):
        for number in (1, 2, 15):
            kill(own, number)
sys.modules["freed"] = Freed()  # modules are freed last, after signals have their default actions again
from sdpl.cli.entry import info
sys.argv[1:] = ["--help"]
info()
"""


def test_a_stop_while_python_takes_itself_apart_changes_nothing(tmp_path):
    ended = run(DURING_THE_END, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Usage: sdpl-info" in ended.stdout


HANGS_AT_THE_END = """
import sys, time
class Freed:
    def __del__(self, sleep=time.sleep):
        sleep(60)
sys.modules["freed"] = Freed()
from sdpl.cli import entry
entry.END_S = 1
sys.argv[1:] = ["--help"]
entry.info()
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="a POSIX timer")
def test_an_end_that_hangs_is_cut_short_though_stops_are_ignored(tmp_path):
    ended = run(HANGS_AT_THE_END, tmp_path)
    assert (ended.returncode, ended.stderr) == (-signal.SIGALRM, "")
    assert "Usage: sdpl-info" in ended.stdout


WITHIN = """
import click, os, signal, sys, time
from sdpl.cli.command import Command
from sdpl.cli.entry import leave_when_stopped
@click.command("x", cls=Command)
def command():
    {body}
leave_when_stopped()
command()
"""


@pytest.mark.parametrize("number", [1, 2, 15])
def test_a_stop_within_an_exec_ends_with_our_status(tmp_path, number):
    """As when a dataclass is made. The interpreter remembers a plain KeyboardInterrupt that came out of one, and ends
    by SIGINT."""
    body = f"exec('os.kill(os.getpid(), {number})\\nfor _ in range(1000): pass')"
    (tmp_path / "within.py").write_text(WITHIN.format(body=body))
    words = [sys.executable, "-m", "within"]  # with -c it would not matter
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (130, "error: interrupted; nothing half-written is left.\n")


CLEANS_UP = """
    try:
        os.kill(os.getpid(), 15)
        time.sleep(60)
    finally:
        os.kill(os.getpid(), 15)
        for _ in range(1000): pass
        print("cleaned up", flush=True)
        import atexit
        atexit.register(lambda: os.kill(os.getpid(), 15))
"""


def test_a_stop_that_comes_more_than_once_is_one_line_and_a_whole_cleanup(tmp_path):
    """`timeout` and service managers tell the process and its group."""
    ended = run(WITHIN.format(body=CLEANS_UP.strip()), tmp_path)
    assert (ended.returncode, ended.stdout) == (130, "cleaned up\n")
    assert ended.stderr == "error: interrupted; nothing half-written is left.\n"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="a POSIX terminal")
def test_the_end_of_a_terminal_is_a_stop_whose_line_nobody_can_read(tmp_path):
    code = WITHIN.format(body="print('ready', flush=True); time.sleep(60)")
    ours, terminal = os.openpty()
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=terminal, stderr=terminal) as command:
        os.close(terminal)
        assert os.read(ours, 100).startswith(b"ready")
        os.close(ours)  # writing to the terminal is an error from here on
        command.send_signal(signal.SIGHUP)
        assert command.wait(timeout=60) == 130


LOST = """
import click, gc, os, signal, sys, time
from sdpl.cli.command import Command
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(1000): pass
@click.command("x", cls=Command)
def command():
    Swallows()
    for _ in range(600):
        time.sleep(0.1)
command()
"""


@pytest.mark.parametrize("number", [2, 15])
def test_a_stop_whose_exception_is_lost_comes_again(tmp_path, number):
    ended = run(LOST.format(number=number), tmp_path)
    assert (ended.returncode, ended.stderr) == (130, "error: interrupted; nothing half-written is left.\n")


def test_an_ignored_interrupt_stays_ignored(tmp_path):
    """As in a shell's background job."""
    ended = run(
        "import signal; signal.signal(2, signal.SIG_IGN)" + INTERRUPTED_AT.format(module="click", number=2), tmp_path
    )
    assert (ended.returncode, "no such configuration file" in ended.stderr) == (2, True)


def test_the_first_module_of_a_command_imports_next_to_nothing():
    assert loaded_by("import sdpl.cli.entry") & {"click", "rich", "numpy", "typing", "contextlib", "pydantic"} == set()


def test_every_command_is_a_console_script():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    scripts = tomllib.loads(text)["project"]["scripts"]
    assert scripts.keys() == {"sdpl", *(f"sdpl-{name}" for name in main.commands)}
    for name, target in scripts.items():
        module, _, attribute = target.partition(":")
        start = getattr(importlib.import_module(module), attribute)
        made, prog_name = (cell.cell_contents for cell in start.__closure__)
        assert prog_name == name
        command = importlib.import_module(f"sdpl.cli.{made}").command
        assert isinstance(command, click.Command)
        assert command.name == name.removeprefix("sdpl-")
    assert entry.STATUS_INTERRUPTED == 130


@pytest.mark.skipif(sys.platform != "linux", reason="a shell's redirections and /dev/full")
@pytest.mark.parametrize(
    ("redirection", "status", "error"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (
            ">/dev/full",
            2,
            "error: the output cannot be written (No space left on device): free space or choose another place.\n",
        ),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, redirection, status, error):
    command = f"{sys.executable} -m sdpl info {redirection}"
    run = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (status, error)
    assert list(tmp_path.iterdir()) == []
