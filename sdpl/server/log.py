"""The access log: one JSON object a line for each request."""

import json
import os
import sys
import time
from typing import Any

from sdpl.errors import UserError
from sdpl.server.counters import Counters


class AccessLog:
    """Appends to a file, to standard output for "-", or nowhere for None. A full disk loses lines, never requests."""

    def __init__(self, path: str | None, counters: Counters):
        self._counters = counters
        self._fd = None if path is None else sys.stdout.fileno() if path == "-" else open_log(path)

    @property
    def on(self) -> bool:
        return self._fd is not None

    def write(self, **fields: Any) -> None:
        if self._fd is None:
            return
        line = json.dumps({"time": round(time.time(), 6), **fields}, ensure_ascii=False, default=str) + "\n"
        try:
            os.write(self._fd, line.encode("utf-8", "replace"))  # at once, so lines of several processes do not mix
        except OSError:
            self._counters.add_server("log_lines_lost")


def open_log(path: str) -> int:
    """The file descriptor of a log, opened for appending. Raises UserError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"--access-log {path}: cannot be written ({error.strerror}).") from None
