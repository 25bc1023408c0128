"""Decoding in processes of their own, for shards that have ended a process: what crashes is one image, not the job.

    python -m sdpl.scale.isolated        reads requests from standard input, writes results to standard output

First it writes `READY`. A request: the bytes of its content, the bound of pixels, the image size, and whether the
content is a path (`REQUEST`); then the content. A result: whether it is an image, and its size in bytes (`RESULT`);
then uint8 [S,S,3], or the error.
"""

import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np

from sdpl.errors import UserError
from sdpl.preprocess import allow_pixels, preprocess
from sdpl.preprocess.bounds import max_pixels

REQUEST, RESULT = struct.Struct("<QQI?"), struct.Struct("<?Q")
READY, START_S = b"!", 60  # written first; seconds until then
TRIES = 2  # of an image; the second one is decoded alone, when memory may be all there is to want


class Isolated:
    """Decodes images in child processes, one for each thread that asks. Use `close`."""

    def __init__(self, timeout_s: float):
        """timeout_s: for one image."""
        self._timeout_s = timeout_s
        self._idle: list[_Process] = []
        self._alone = threading.Lock()

    def load(self, image: str | bytes, source: str, image_size: int) -> np.ndarray:
        """uint8 [S,S,3]. Raises UserError for a bad image, and for one that ends its process or takes too long."""
        try:
            return self._load(image, image_size)
        except _DiedError:
            with self._alone:
                try:
                    return self._load(image, image_size)
                except _DiedError as error:
                    raise UserError(f"{source}: {error} ({TRIES} tries, each in a process of its own).") from None

    def close(self) -> None:
        for process in self._idle:
            process.end()

    def _load(self, image: str | bytes, image_size: int) -> np.ndarray:
        try:
            process = self._idle.pop()
        except IndexError:
            process = _Process()
        try:
            loaded = process.load(image, image_size, self._timeout_s)
        except _DiedError:
            process.end()
            raise
        except UserError:
            self._idle.append(process)
            raise
        self._idle.append(process)
        return loaded


class _DiedError(Exception):
    """What became of a process, for a person."""


class _Process:
    def __init__(self) -> None:
        command = [sys.executable, "-m", "sdpl.scale.isolated"]
        self._process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        try:
            self._read(len(READY), time.monotonic() + START_S)
        except _DiedError as error:
            self.end()
            raise UserError(f"a process to decode in cannot start: it {error}.") from None

    def load(self, image: str | bytes, image_size: int, timeout_s: float) -> np.ndarray:
        is_path = isinstance(image, str)
        content = os.fsencode(image)
        until = time.monotonic() + timeout_s
        with suppress(BrokenPipeError):  # it died; `_read` says how
            self._write(REQUEST.pack(len(content), max_pixels(), image_size, is_path))
            self._write(content)
        is_image, size = RESULT.unpack(self._read(RESULT.size, until))
        result = self._read(size, until)
        if not is_image:
            raise UserError(result.decode())
        return np.frombuffer(result, np.uint8).reshape(image_size, image_size, 3)

    def end(self) -> None:
        self._process.kill()
        for stream in (self._to, self._from):
            stream.close()
        with suppress(subprocess.TimeoutExpired):  # it hangs in the system
            self._process.wait(timeout=5)

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[self._to.write(view) :]

    def _read(self, size: int, until: float) -> bytes:
        found = b""
        while len(found) < size:
            ready, _, _ = select.select([self._from], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise _DiedError("takes too long to decode")
            part = self._from.read(size - len(found))
            if not part:
                status = self._process.wait()
                how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
                raise _DiedError(f"ends the process that decodes it ({how})")
            found += part
        return found


def serve(requests: int, results: int) -> None:
    """Decode what comes through one pipe into the other, until it ends."""
    with os.fdopen(requests, "rb") as source, os.fdopen(results, "wb") as sink:
        sink.write(READY)
        sink.flush()
        while header := source.read(REQUEST.size):
            size, pixels, image_size, is_path = REQUEST.unpack(header)
            content = source.read(size)
            allow_pixels(pixels)
            try:
                result, is_image = preprocess(os.fsdecode(content) if is_path else content, image_size).tobytes(), True
            except UserError as error:
                result, is_image = str(error).encode(errors="backslashreplace"), False
            sink.write(RESULT.pack(is_image, len(result)))
            sink.write(result)
            sink.flush()


if __name__ == "__main__":
    _results = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no result
    serve(0, _results)
