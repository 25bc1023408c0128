"""Messages between a front end and an engine, over a Unix socket.

Every message begins with 32 bytes (`HEADER`); one of kind CONTROL is followed by as many bytes of JSON as its `slot`
says. File descriptors of shared memory travel beside the message that speaks of them.
"""

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HEADER = struct.Struct("<BBHIQQQ")  # kind, status, model, slot, and three numbers whose meaning depends on the kind
CONTROL, SUBMIT, CANCEL, RESULT = range(4)
DONE, EXPIRED, CANCELLED, FAILED = range(4)  # statuses of a RESULT
WITH_ATTENTION = 1  # status of a SUBMIT
MAX_FDS = 16


@dataclass(frozen=True)
class Message:
    """One message.

    SUBMIT: a is the line's number, b the deadline and c the time of sending (ns of the monotonic clock).
    RESULT: a is the line's number, b the wait in ns, c the run in us << 16 | images of its batch.
    CONTROL: `content`, and the file descriptors that came with it.
    """

    kind: int
    status: int = 0
    model: int = 0
    slot: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    content: Any = None
    fds: tuple[int, ...] = ()


class ClosedError(Exception):
    """The other side is gone."""


class Channel:
    """One end of the socket. Neither call waits: what cannot be sent yet is kept until `flush`."""

    def __init__(self, sock: socket.socket):
        sock.setblocking(False)
        self.sock = sock
        self._out: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._in = bytearray()
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def waiting(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._out)

    def send(self, data: bytes) -> None:
        """Send packed headers. Raises ClosedError."""
        self._out.append((data, ()))
        self.flush()

    def control(self, content: Any, fds: tuple[int, ...] = ()) -> None:
        """Send a CONTROL message. The file descriptors are closed here once they are sent. Raises ClosedError."""
        text = json.dumps(content).encode()
        self._out.append((HEADER.pack(CONTROL, len(fds), 0, len(text), 0, 0, 0) + text, fds))
        self.flush()

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it. Raises ClosedError."""
        try:
            while self._out:
                data, fds = self._out[0]
                sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.send(data)
                for fd in fds:
                    os.close(fd)
                if sent == len(data):
                    self._out.popleft()
                else:
                    self._out[0] = (data[sent:], ())
        except BlockingIOError:
            return
        except OSError as error:
            raise ClosedError(str(error)) from None

    def receive(self) -> Iterator[Message]:
        """The messages that have come in whole. Raises ClosedError when the other side has gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 1 << 18, MAX_FDS)
        except BlockingIOError:
            return
        except OSError as error:
            raise ClosedError(str(error)) from None
        if not data:
            raise ClosedError("end of stream")
        self._in += data
        self._fds.extend(fds)
        start = 0
        while len(self._in) - start >= HEADER.size:
            kind, status, model, slot, a, b, c = HEADER.unpack_from(self._in, start)
            end = start + HEADER.size
            if kind != CONTROL:
                start = end
                yield Message(kind, status, model, slot, a, b, c)
                continue
            if len(self._in) - end < slot:
                break
            content = json.loads(bytes(self._in[end : end + slot]))
            start = end + slot
            yield Message(kind, content=content, fds=tuple(self._fds.popleft() for _ in range(status)))
        del self._in[:start]

    def close(self) -> None:
        self.sock.close()
