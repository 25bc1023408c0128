"""The HTTP side alone, with short times: callers that send a byte now and then."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable

import pytest

from sdpl.server.exchange import Exchange, Limits, Request, Response
from sdpl.server.http import Server
from sdpl.server.refusal import RefusalError
from sdpl.server.routes import Later

pytestmark = pytest.mark.slow


class Echo:
    """Answers with the body it was sent."""

    def route(self, request: Request) -> Callable[[], Exchange]:
        if request.path == "/defect":
            raise ZeroDivisionError

        async def answer(body: bytes) -> Response:
            return Response(body=[body])

        return lambda: Later(request, answer)

    def refusal(self, request, refused: RefusalError) -> Response:
        return Response(refused.reason.http, [str(refused).encode()])

    def finish(self, request, response) -> None:
        """Nothing is added."""

    def finished(self, request, response, sent) -> None:
        """Nothing is counted."""


async def talk(first: bytes, drip: bytes, every_s: float) -> tuple[bytes, float]:
    """What a caller gets that sends `first` and then one byte of `drip` every so often, and after how long."""
    server = Server(
        Echo(), Limits(1 << 20, 1 << 30, 10, header_timeout_s=0.4, idle_timeout_s=0.8, min_bytes_per_s=1000)
    )
    listening = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
    sweeping = asyncio.create_task(server.sweep())
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    start = time.monotonic()
    writer.write(first)

    async def send() -> None:
        for i in range(len(drip)):
            await asyncio.sleep(every_s)
            writer.write(drip[i : i + 1])

    sending = asyncio.create_task(send())
    answer = b""
    try:
        while chunk := await asyncio.wait_for(reader.read(1 << 16), 20):
            answer += chunk
    except ConnectionResetError:  # it was closed while a byte was on its way
        pass
    finally:
        took = time.monotonic() - start
        for task in (sending, sweeping):
            task.cancel()
        await asyncio.gather(sending, sweeping, return_exceptions=True)
        writer.close()
        listening.close()
    return answer, took


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nContent-Length: 60000\r\n\r\n"])
def test_a_head_or_a_body_that_comes_a_byte_at_a_time_is_cut_off(first):
    answer, took = asyncio.run(talk(first, b"a" * 200, 0.05))
    assert answer.startswith(b"HTTP/1.1 408")
    assert took < 8


def test_a_connection_that_says_nothing_is_closed():
    answer, _ = asyncio.run(talk(b"", b"", 1))
    assert answer == b""


def test_a_slow_caller_that_is_fast_enough_is_answered():
    request = b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    answer, _ = asyncio.run(talk(request, b"abcd", 0.05))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"abcd")


def test_a_chunked_body_is_as_slow_as_its_bytes_come_and_not_cut_off_before():
    request = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2000\r\n" + b"a" * 0x2000
    answer, _ = asyncio.run(talk(request, b"\r\n1\r\nb\r\n0\r\n\r\n", 0.1))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"ab")


def test_a_caller_that_is_gone_when_it_was_refused_leaves_no_word_in_the_log():
    class Resets(Echo):
        def route(self, request: Request) -> Response:
            if request.method == "GET":
                return Response()
            raise RefusalError("invalid", "no.")

        def finished(self, request, response, sent) -> None:
            if request.method == "GET":
                return
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
            caller.close()

    async def refuse() -> list[dict]:
        loop, said = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda _, context: said.append(context))
        server = Server(Resets(), Limits(1 << 20, 1 << 30, 10, 1, 1, 1000))
        listening = await loop.create_server(server.make, "127.0.0.1", 0)
        caller.setblocking(False)
        await loop.sock_connect(caller, listening.sockets[0].getsockname())
        await loop.sock_sendall(caller, b"GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        while caller.fileno() >= 0 or server.connections:
            await asyncio.sleep(0.01)
        listening.close()
        return said

    caller = socket.socket()
    assert asyncio.run(refuse()) == []


def test_a_defect_is_told_with_a_status_and_not_by_silence():
    answer, _ = asyncio.run(talk(b"GET /defect HTTP/1.1\r\nConnection: close\r\n\r\n", b"", 1))
    assert answer.startswith(b"HTTP/1.1 500")
    assert b"internal error: ZeroDivisionError" in answer
