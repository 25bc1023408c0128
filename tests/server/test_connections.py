"""Connections are open files, of which a process may have only so many."""

import subprocess
import sys

import pytest

FOUND = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from sdpl.server.frontend import connections
print(connections({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
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
