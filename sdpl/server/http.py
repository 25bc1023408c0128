"""HTTP/1.1 on asyncio's buffered protocol: bodies are received straight into the memory where they are needed.

`head.py` parses heads and chunked bodies; a body with a length goes past it. What a request is for is `routes.py`'s.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import cast

from sdpl.server.exchange import Exchange, Limits, Request, Response, Routes
from sdpl.server.head import MAX_HEAD, ChunkedBody, format_head, parse_head
from sdpl.server.refusal import RefusalError

SCRATCH = 1 << 16
KEEP_UNWANTED = 4 << 20  # bytes of a body that nobody wants that are dropped so that the connection can stay open
LINGER_S = 2.0
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Server:
    """All connections of one front end."""

    def __init__(self, routes: Routes, limits: Limits):
        self.routes, self.limits = routes, limits
        self.connections: set[Connection] = set()
        self.bodies = 0  # bytes that have come in of all bodies that are being received or answered
        self.draining = False

    def make(self) -> "Connection":
        return Connection(self)

    @property
    def busy(self) -> bool:
        return any(connection.busy for connection in self.connections)

    async def sweep(self) -> None:
        """Close connections that are idle, slow or stuck; until cancelled."""
        while True:
            await asyncio.sleep(0.25)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.check(now)

    def drain(self) -> None:
        """From now on every answer closes its connection; idle ones are closed now."""
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()


class Connection(asyncio.BufferedProtocol):
    """One client. It reads a head, receives a body, answers, or drops a body that nobody wants."""

    _scratch = memoryview(bytearray(SCRATCH))  # for heads and dropped bodies: each use ends before the next begins

    def __init__(self, server: Server):
        self._server = server
        self._transport: asyncio.Transport
        self._peer = ""
        self._pending = b""  # bytes of a head, or behind the request that is being answered
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._chunks: ChunkedBody | None = None
        self._receive: Callable[[], Exchange] | None = None  # what takes it once it is whole
        self._body: memoryview | None = None  # where the body goes now
        self._filled = 0  # bytes of it
        self._remaining = 0  # bytes of the whole body that are still to come
        self._held = 0  # bytes of the body that count among the server's
        self._response: Response | None = None  # waits until the rest of an unwanted body has been dropped
        self._unread = False  # of a chunked body that nobody wants
        self._closing = False
        self._since = time.monotonic()  # when this state began
        self._paused = False  # nothing is read
        self._unsent = False  # answers wait for a client that does not read them: no further request is begun

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self._request is not None

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else ""
        connections = self._server.connections
        if len(connections) >= self._server.limits.max_connections:
            refused = RefusalError("overloaded", "too many connections.", 1)
            self._write(None, self._server.routes.refusal(None, refused), close=True)
            return
        connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.connections.discard(self)
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        elif self._exchange is not None:
            self._exchange.abandon()
        self._exchange = self._body = None
        self._hold(0)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._filled : self._filled + self._remaining]
        return self._scratch

    def buffer_updated(self, count: int) -> None:
        if self._closing:
            return
        if self._body is not None:
            self._remaining -= count
            self._filled += count
            self._go_on()
            return
        self._feed(bytes(self._scratch[:count]))

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._unsent = True

    def resume_writing(self) -> None:
        self._unsent = False
        self._since = time.monotonic()
        self._go_on_reading()

    # Receiving

    def _feed(self, data: bytes) -> None:
        if self._response is not None:
            dropped = min(len(data), self._remaining)
            self._remaining -= dropped
            data = data[dropped:]
            if self._remaining:
                return
            response, self._response = self._response, None
            self._write(self._request, response)
        if self._chunks is not None:
            self._feed_chunks(data)
            return
        if not self._pending and self._request is None:
            self._since = time.monotonic()
        self._pending += data
        if self._task is None and self._request is None and not self._unsent:
            self._read_head()
        elif len(self._pending) > MAX_HEAD and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _read_head(self) -> None:
        """A head, if it has come in whole."""
        if self._pending[:1] in (b"\r", b"\n"):
            self._pending = self._pending.lstrip(b"\r\n")
        end = self._pending.find(b"\r\n\r\n")
        if end < 0 or end > MAX_HEAD:
            if len(self._pending) > MAX_HEAD:
                self._refuse(RefusalError("header", f"the head is longer than {MAX_HEAD} bytes."), close=True)
            return
        head, rest = self._pending[: end + 4], self._pending[end + 4 :]
        self._pending = b""
        self._since, limit = time.monotonic(), self._server.limits.max_body
        try:
            request, self._chunks = parse_head(head, self._peer)
            self._request, self._remaining = request, request.length
            if request.length > limit:
                raise RefusalError("too_large", f"the body has {request.length} bytes (limit {limit}).")
            found = self._server.routes.route(request)
        except Exception as error:
            self._refuse(_refusal(error), rest)
            return
        if isinstance(found, Response):
            self._reply(found, rest)
        elif self._chunks is None:
            self._begin(found, rest)
        else:
            self._receive = found
            self._expected(request)
            self._feed_chunks(rest)

    def _read_next(self) -> None:
        """The request behind the one that was answered; not at once, so that a long row of them nests no calls."""
        if self._request is None and self._pending and not self._closing and not self._unsent:
            self._since = time.monotonic()
            self._read_head()

    def _begin(self, receive: Callable[[], Exchange], rest: bytes) -> None:
        assert self._request is not None
        try:
            self._exchange = receive()
        except Exception as error:
            self._refuse(_refusal(error), rest)
            return
        if not rest:
            self._expected(self._request)
        self._body, self._filled = self._exchange.memory, 0
        while rest and self._remaining and self._body is not None:
            count = min(len(rest), self._remaining, len(self._body) - self._filled)
            self._body[self._filled : self._filled + count] = rest[:count]
            rest = rest[count:]
            self._remaining -= count
            self._filled += count
            if not self._fill():
                self._feed(rest)
                return
        self._pending = rest
        self._go_on()

    def _go_on(self) -> None:
        """After bytes of the body have come in."""
        assert self._exchange is not None
        assert self._request is not None
        try:
            self._hold(self._request.length - self._remaining)
        except RefusalError as refused:
            self._exchange.abandon()
            self._refuse(refused, self._pending)
            return
        if self._fill() and self._remaining == 0:
            self._body = None
            exchange = self._exchange
            self._task = asyncio.get_running_loop().create_task(self._answer())
            self._task.add_done_callback(lambda _: exchange.abandon())  # also when it is cancelled before it began

    def _fill(self) -> bool:
        """Ask for the next memory once this is full. False when the request was refused meanwhile."""
        assert self._exchange is not None
        if self._body is not None and self._filled == len(self._body) and (self._remaining or self._filled):
            try:
                self._exchange.filled()
            except Exception as error:
                self._exchange.abandon()
                self._refuse(_refusal(error))
                return False
            self._body, self._filled = self._exchange.memory, 0
        return True

    def _feed_chunks(self, data: bytes) -> None:
        """A chunked body: gathered, and then treated like one with a length."""
        assert self._chunks is not None
        assert self._request is not None
        assert self._receive is not None
        chunks, limit = self._chunks, self._server.limits.max_body
        try:
            chunks.feed(data)
            if len(chunks.content) > limit:
                raise RefusalError("too_large", f"the body has more than {limit} bytes.")
            self._hold(len(chunks.content))
        except RefusalError as refused:
            self._refuse(refused)
            return
        if chunks.is_whole:
            self._chunks, self._request.keep_alive = None, False  # what follows on the connection is not looked at
            self._request.length = self._remaining = len(chunks.content)
            self._begin(self._receive, bytes(chunks.content))

    def _hold(self, size: int) -> None:
        """Count so many bytes of the body among the server's, until the answer: what has come in, since what is only
        announced takes no memory. Raises RefusalError when they are too many; a body that is alone always has room."""
        server, others = self._server, self._server.bodies - self._held
        if size and others and others + size > server.limits.max_bodies:
            raise RefusalError("overloaded", "overloaded: no memory is free for more bodies now.", 1)
        server.bodies, self._held = others + size, size

    def _expected(self, request: Request) -> None:
        if request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(CONTINUE)

    # Answering

    async def _answer(self) -> None:
        exchange, request = self._exchange, self._request
        assert exchange is not None
        assert request is not None
        try:
            response = await exchange.answer()
        except asyncio.CancelledError:
            request.refused = RefusalError("cancelled", "the caller went away")
            self._server.routes.finished(request, Response(499), 0)
            return
        except Exception as error:
            response = self._server.routes.refusal(request, _refusal(error))
        exchange.abandon()
        self._task = self._exchange = None
        self._hold(0)
        self._write(request, response)

    def _refuse(self, refused: RefusalError, rest: bytes = b"", close: bool = False) -> None:
        self._reply(self._server.routes.refusal(self._request, refused), rest, close)

    def _reply(self, response: Response, rest: bytes = b"", close: bool = False) -> None:
        """Answer without the body having been read. A short rest of it is dropped, so that the client reads on; more
        than that, or one that the client still asks about, ends the connection."""
        request = self._request
        self._unread = self._chunks is not None or request is None  # how much is to come, nobody knows
        self._exchange = self._body = self._chunks = self._receive = None
        self._hold(0)
        dropped = min(len(rest), self._remaining)
        self._pending = rest[dropped:]  # the next request, of a caller that does not wait for answers
        self._remaining -= dropped
        asks = request is not None and "expect" in request.headers
        if close or self._unread or (self._remaining and asks) or self._remaining > KEEP_UNWANTED:
            self._write(request, response, close=True)
        elif self._remaining:
            self._response = response
        else:
            self._write(request, response)

    def _write(self, request: Request | None, response: Response, close: bool = False) -> None:
        if self._transport.is_closing():
            return
        body = [bytes(piece) if isinstance(piece, memoryview) else piece for piece in response.body]
        size = sum(map(len, body))
        close = close or self._server.draining or request is None or not request.keep_alive
        if request is not None:
            self._server.routes.finish(request, response)
        head = format_head(response, size, close)
        self._transport.write(head if request is not None and request.method == "HEAD" else b"".join((head, *body)))
        if request is not None:
            self._server.routes.finished(request, response, size)
        self._request = None
        self._since = time.monotonic()
        if close:
            self._linger()
        elif not self._unsent:
            self._go_on_reading()

    def _go_on_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._pending:
            asyncio.get_running_loop().call_soon(self._read_next)

    def _linger(self) -> None:
        """Close after what was written has gone out. While a client still sends, a close would reset the connection
        before it reads the answer: it sees the end at once, and what it sends is dropped for a little while."""
        self._closing = True
        self._body = None
        if self._remaining or self._unread:
            if self._transport.can_write_eof() and not self._transport.get_write_buffer_size():
                with contextlib.suppress(OSError):  # the client is gone already
                    self._transport.write_eof()
            asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)
        else:
            self._transport.close()

    # Time

    def check(self, now: float) -> None:
        """Close when a client is too slow, or has been quiet too long."""
        limits, waited = self._server.limits, now - self._since
        if self._closing:
            if waited > limits.header_timeout_s + LINGER_S:
                self._transport.abort()  # it does not even read the answer
        elif self._task is not None:
            return
        elif self._request is not None:
            self._check_body(waited)
        elif self._unsent or not self._pending:
            if waited > limits.idle_timeout_s:
                self._end_idle()
        elif waited > limits.header_timeout_s:
            self._refuse(RefusalError("slow", "the head did not come in time."), close=True)

    def _end_idle(self) -> None:
        if self._unsent or self._transport.is_closing():
            self._transport.abort()  # it does not read what it asked for
        else:
            self._transport.close()

    def _check_body(self, waited: float) -> None:
        """Cut off a body that comes too slowly."""
        assert self._request is not None
        limits, received = self._server.limits, self._request.length - self._remaining
        if self._chunks is not None:
            received = len(self._chunks.content)
        if waited > limits.header_timeout_s and received < waited * limits.min_bytes_per_s:
            if self._exchange is not None:
                self._exchange.abandon()
            self._response = None
            self._refuse(RefusalError("slow", "the body comes too slowly."), close=True)

    def close_if_idle(self) -> None:
        if self._request is None and not self._pending:
            self._transport.close()


def _refusal(error: Exception) -> RefusalError:
    """The refusal itself, or, for a defect of the server, one that tells the caller and the log."""
    if isinstance(error, RefusalError):
        return error
    asyncio.get_running_loop().call_exception_handler({"message": "a request failed", "exception": error})
    return RefusalError("internal", f"internal error: {type(error).__name__}")
