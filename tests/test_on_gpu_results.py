"""Results of `benchmarks/on_gpu.sh`'s steps: one that fails loses no other, and what was cut off goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import results
from results import UNFINISHED, Results

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "on_gpu.sh"


def fail():
    raise ValueError("a line\nand another")


@pytest.fixture
def answers(monkeypatch):
    """answers(False): the GPU does not any more."""
    change = lambda value: monkeypatch.setattr(results, "gpu_answers", lambda: value)  # noqa: E731
    change(True)
    return change


def test_a_result_that_fails_loses_no_other(tmp_path, answers):
    path = tmp_path / "r.json"
    mine = Results(path, 60, gpu="none")
    mine.attempt("one", fail)
    mine.attempt("two", lambda: {"us": 1})
    mine.attempt("three", lambda: {"us": 2, "wrong": {"kernel": "far off"}})
    with pytest.raises(SystemExit, match="failed: one, three"):
        mine.finish()
    assert json.loads(path.read_text())["results"] == {
        "one": {"failed": "ValueError: a line and another", "tries": 1},
        "two": {"us": 1},
        "three": {"us": 2, "wrong": {"kernel": "far off"}},
    }
    assert os.listdir(tmp_path) == ["r.json"]


def test_a_result_that_failed_is_tried_once_more_by_the_next_process(tmp_path, answers):
    path = tmp_path / "r.json"
    for name in ("one", "two"):
        Results(path, 60).attempt(name, fail)
    again = Results(path, 60)
    again.attempt("one", lambda: {"us": 1})
    again.attempt("two", fail)
    again.attempt("two", lambda: pytest.fail("it was tried twice by one process"))
    with pytest.raises(SystemExit, match="failed: two"):
        again.finish()
    third = Results(path, 60)
    for name in ("one", "two"):
        third.attempt(name, lambda: pytest.fail("it was tried"))


def test_a_gpu_that_answers_no_more_needs_a_new_process_which_goes_on(tmp_path, answers):
    answers(False)
    with pytest.raises(SystemExit) as ended:
        Results(tmp_path / "r.json", 60).attempt("one", fail)
    assert ended.value.code == UNFINISHED
    again = Results(tmp_path / "r.json", 60)
    again.attempt("one", lambda: pytest.fail("it was tried"))
    again.attempt("two", lambda: {"us": 1})


def test_nothing_is_begun_that_could_not_end(tmp_path):
    mine = Results(None, 60)
    mine.attempt("short", lambda: {}, needs_s=30)
    with pytest.raises(SystemExit) as ended:
        mine.attempt("long", lambda: pytest.fail("it was begun"), needs_s=90)
    assert ended.value.code == UNFINISHED


FAKE_PYTHON = """#!{python}
import os, sys
words = " ".join(sys.argv[1:])
if "with_wheels" in words:
    print("it ran:", words)
    open(os.environ["CALLS"], "a").write(words + "\\n")
    for pair in os.environ["STATUSES"].split():
        name, status = pair.split("=")
        if name in words:
            sys.exit(int(status))
sys.exit(0 if "with_wheels" in words or "torch" in words else 1)
"""


@pytest.fixture
def run(tmp_path):
    """run("two_stage=1", ...) -> what the script prints, and the steps that it called, where scripts end so."""
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "site").mkdir()  # as if the wheels were installed

    def one(*statuses, seconds=540):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHON": str(python),
            "XDG_CACHE_HOME": str(tmp_path),
            "CALLS": str(calls),
            "STATUSES": " ".join(statuses),
        }
        command = ["bash", SCRIPT, "run", tmp_path / "results", str(seconds)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return result.stdout.splitlines(), calls.read_text().splitlines()

    return one


def test_a_step_that_fails_loses_no_other_and_is_tried_once_more(run, tmp_path):
    lines, calls = run(
        "kernel_once=1",
    )
    assert lines[-1] == "call again for: kernels"
    assert len([call for call in calls if "two_stage" in call or "kernel.py" in call]) == 4
    lines, calls = run("kernel_once=1")
    assert len(calls) == 1
    assert lines[-1] == "all done; failed: kernels"
    lines, calls = run("kernel_once=1")
    assert (lines[-1], calls) == ("all done; failed: kernels", [])
    assert len(list((tmp_path / "results").iterdir())) <= 8


def test_a_step_that_was_cut_off_goes_on_and_ends_by_itself_before_it_is_stopped(run):
    lines, calls = run("--out=3")
    assert lines[-1] == "call again for: kernel-quick two-stage kernel"
    given = {call.split()[1]: int(call.split("--seconds ")[1].split()[0]) for call in calls if "--seconds" in call}
    assert all(0 < seconds <= 440 for seconds in given.values())
    lines, calls = run()
    assert lines[-1] == "all done; failed: none"
    assert len(calls) == 3


def test_where_no_time_is_left_nothing_is_begun(run):
    lines, calls = run(seconds=20)
    assert calls == []
    assert lines[-1].startswith("call again for: kernels")
