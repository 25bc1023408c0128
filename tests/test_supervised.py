"""A child that dies is started again; its end, its signals and its input are those of the one command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpl.supervised import MOST, Journal, supervise

START = """
import os, signal, sys, time
from sdpl.errors import UserError
from sdpl.supervised import supervise
try:
    journal = supervise(3, keep_stdin={keep})
except UserError as error:
    print("error:", error)
    sys.exit(2)
deaths = sum(journal.deaths.values())
{body}
"""


def start(body, keep=False, **options):
    script = START.format(body=body, keep=keep)
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_was_in_work_is_known_after_a_death():
    journal = Journal(3)
    for shard in range(5):
        journal.begin(shard)
    journal.end(1)
    journal.end(3)
    assert journal.bury() == ([0, 2, 4], 2)
    assert journal.deaths == {0: 1, 2: 1, 4: 1}
    assert journal.bury() == ([], 0)
    for shard in range(2 * MOST):  # more than it remembers
        journal.begin(shard)
    assert journal.bury()[0] == list(range(MOST))


def test_a_process_with_numpy_is_not_forked():
    assert supervise(3) is None


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_it_goes_on_in_another_child_that_knows_what_died(name):
    process = start(
        f"journal.begin(7)\nprint(deaths, sorted(journal.deaths), flush=True)\n"
        f"if deaths < 2: os.kill(os.getpid(), signal.{name})\nsys.exit(5)"
    )
    out, err = process.communicate()
    assert process.returncode == 5, err
    assert out.splitlines() == ["0 []", "1 [7]", "2 [7]"]
    assert err.count(f"the process was ended by {name} in the middle of shard 7;") == 2


def test_children_that_never_get_on_end_it():
    out, _ = start("os.kill(os.getpid(), signal.SIGKILL)").communicate()
    assert "error: the process was ended by SIGKILL before it worked on anything" in out
    process = start("journal.begin(deaths)\nos._exit(75)")
    out, err = process.communicate()
    assert process.returncode == 2
    assert "error: the process hung 10 times without finishing anything" in out
    process = start("journal.begin(1)\nif deaths == 20: sys.exit(0)\njournal.begin(2)\njournal.end(2)\nos._exit(75)")
    process.communicate()
    assert process.returncode == 0  # each of these finished something


def test_an_error_or_a_stop_is_no_crash():
    for body, status in (("sys.exit(3)", 3), ("raise ValueError", 1), ("os.kill(os.getpid(), signal.SIGHUP)", 129)):
        process = start(body)
        process.communicate()
        assert process.returncode == status


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_stop_of_the_parent_reaches_the_child_and_it_may_end_well(name):
    process = start(
        f"signal.signal(signal.{name}, lambda *_: sys.exit(9))\nprint(1, flush=True)\ntime.sleep(60)",
    )
    process.stdout.readline()
    process.send_signal(signal.Signals[name])
    process.communicate()
    assert process.returncode == 9


def test_a_stop_that_a_dying_child_did_not_obey_is_obeyed_by_the_parent():
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\njournal.begin(1)\n"
        "print(deaths, flush=True)\ntime.sleep(60 if deaths == 0 else 1)",
    )
    assert process.stdout.readline() == "0\n"
    process.terminate()
    out, err = process.communicate()
    assert out == ""  # no other child
    assert "sdpl.errors.Stopped" in err
    assert "going on" not in err


def test_a_stop_at_once_after_a_fork_waits_until_the_child_knows_what_it_means():
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\njournal.begin(1)\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, ()), flush=True)\ntime.sleep(60)",
    )
    assert process.stdout.readline() == "set()\n"  # it is told afterwards
    process.terminate()
    process.communicate()
    assert process.returncode == 9


def test_the_child_ends_with_its_parent():
    process = start("print(os.getpid(), flush=True)\ntime.sleep(60)")
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()  # waits for the end of the pipe, which the child has too
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child goes on")


def test_each_child_reads_all_of_standard_input():
    process = start(
        "print(sys.stdin.read(), flush=True)\njournal.begin(1)\nif not deaths: os._exit(75)",
        keep=True,
        stdin=subprocess.PIPE,
    )
    assert process.communicate("a\nb")[0] == "a\nb\na\nb\n"


def test_a_process_whose_output_is_caught_is_not_forked():
    body = """
import click
from click.testing import CliRunner
from sdpl.supervised import supervise
@click.command()
def command(): print(supervise(3))
print(CliRunner().invoke(command).output)
"""
    assert subprocess.run([sys.executable, "-c", body], capture_output=True, text=True).stdout == "None\n\n"


def test_a_system_without_fork_works_as_before(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    monkeypatch.delattr(os, "fork")
    assert supervise(3) is None
