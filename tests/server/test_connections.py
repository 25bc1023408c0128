"""Connections are open files, of which a process may have only so many."""

import subprocess
import sys

import pytest

FOUND = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from sdpl.server.connections import ask_for_files, fitting
ask_for_files({wanted})
print(fitting({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "found"),
    [
        (1024, 4096, 1024, "1024 3136"),  # the usual limit would not hold them
        (256, 1024, 1024, "320 1024"),
        (1024, 4096, 10, "10 1024"),
        (40, 40, 1024, "1 40"),
    ],
)
def test_files_that_may_be_open_are_asked_for_and_connections_fit_them(soft, hard, wanted, found):
    code = FOUND.format(soft=soft, hard=hard, wanted=wanted)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == found + "\n"


@pytest.mark.parametrize(
    ("hard", "said"),
    [
        (1024, "warning: 640 connections at once, not 1024: a process may have 1024 files open here "),
        (4096, "None"),
    ],
)
def test_who_asks_for_more_connections_than_fit_is_told(hard, said):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, {hard}), {hard}))
from sdpl.server.options import narrower
from sdpl.server.settings import Settings
print(narrower(Settings({{}}, workers=2)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.startswith(said)
    assert out.count("\n") == 1
