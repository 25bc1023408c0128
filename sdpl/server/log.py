"""The access log: one JSON object a line for each request."""

import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from sdpl.errors import UserError
from sdpl.server.counters import Counters

LOOK_S = 1.0


class AccessLog:
    """Appends to a file, to standard output for "-", or nowhere for None. A full disk loses lines, never requests.

    A file that is renamed or deleted, as logrotate does, is begun anew within `LOOK_S`.
    """

    def __init__(self, path: str | None, counters: Counters):
        self._counters = counters
        self._path = path if path != "-" else None
        self._fd = None if path is None else sys.stdout.fileno() if path == "-" else open_log(path)
        self._look_at = 0.0

    @property
    def on(self) -> bool:
        return self._fd is not None

    def write(self, **fields: Any) -> None:
        if self._fd is None:
            return
        self._follow()
        line = json.dumps({"time": round(time.time(), 6), **fields}, ensure_ascii=False, default=str) + "\n"
        try:
            os.write(self._fd, line.encode("utf-8", "replace"))  # at once, so lines of several processes do not mix
        except OSError:
            self._counters.add_server("log_lines_lost")

    def _follow(self) -> None:
        """Open the file again when another one, or none, has its name. While none can be opened, go on with the old."""
        now = time.monotonic()
        if self._path is None or self._fd is None or now < self._look_at:
            return
        self._look_at = now + LOOK_S
        with suppress(OSError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._fd)):
                return
        with suppress(UserError):
            old, self._fd = self._fd, open_log(self._path)
            with suppress(OSError):  # of lines that were lost, such as on a network's disk
                os.close(old)


def open_log(path: str) -> int:
    """The file descriptor of a log, opened for appending. Raises UserError."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UserError(f"--access-log {path}: cannot be written ({error.strerror}).") from None
