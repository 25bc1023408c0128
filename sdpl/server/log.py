"""The access log: one JSON object a line for each request."""

import json
import sys
import time
from typing import Any, TextIO

from sdpl.errors import UserError
from sdpl.server.counters import Counters


class AccessLog:
    """Writes to a file, or to standard output for "-", or nowhere for None. A full disk loses lines, never requests."""

    def __init__(self, path: str | None, counters: Counters):
        self._counters = counters
        self._stream: TextIO | None = None
        if path == "-":
            self._stream = sys.stdout
        elif path is not None:
            self._stream = open_log(path)

    @property
    def on(self) -> bool:
        return self._stream is not None

    def write(self, **fields: Any) -> None:
        if self._stream is None:
            return
        line = json.dumps({"time": round(time.time(), 6), **fields}, ensure_ascii=False, default=str) + "\n"
        try:
            self._stream.write(line)  # one write, so lines of several processes do not mix
            self._stream.flush()
        except (OSError, ValueError):
            self._counters.add_server("log_lines_lost")


def open_log(path: str) -> TextIO:
    """A log file, opened for appending. Raises UserError."""
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--access-log {path}: cannot be written ({error.strerror}).") from None
