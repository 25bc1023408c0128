"""The HTTP side alone: memory of bodies that are being received or answered."""

import asyncio
import contextlib
import socket
from collections.abc import Callable

import pytest
from serving import serving, until

from sdpl.server.exchange import Exchange, Limits, Request, Response
from sdpl.server.http import Server
from sdpl.server.refusal import RefusalError
from sdpl.server.routes import Later
from sdpl.server.settings import MIB, Settings

SIZE = 1 << 16
HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % SIZE
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


class Sizes:
    """Answers with the size of the body, when told to."""

    def __init__(self):
        self.go_on = asyncio.Event()

    def route(self, request: Request) -> Callable[[], Exchange]:
        async def answer(body: bytes) -> Response:
            await self.go_on.wait()
            return Response(body=[str(len(body)).encode()])

        return lambda: Later(request, answer)

    def refusal(self, request, refused: RefusalError) -> Response:
        return Response(refused.reason.http, [str(refused).encode()])

    def finish(self, request, response) -> None:
        """Nothing is added."""

    def finished(self, request, response, sent) -> None:
        """Nothing is counted."""


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head.split(b" ")[1] + b" " + await reader.readexactly(length)


async def end(server: Server, listening: asyncio.Server, writers: list[asyncio.StreamWriter]) -> None:
    listening.close()
    for writer in writers:
        writer.close()
    while server.connections:
        await asyncio.sleep(0.01)


def chunk(size: int) -> bytes:
    return b"%x\r\n" % size + bytes(size) + b"\r\n"


async def bodies(first: bytes, rest: bytes, second: bytes, leave: bool) -> list[bytes]:
    """What two callers get, of whom the second comes while the first is in hand, and then what a third one gets."""
    routes = Sizes()
    server = Server(routes, Limits(1 << 20, SIZE * 3 // 2, 10, 10, 10, 1))
    listening = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
    address = listening.sockets[0].getsockname()
    (reader, writer), (other, to_other) = [await asyncio.open_connection(*address) for _ in range(2)]
    writer.write(first)
    while server.bodies < SIZE - 10:
        await asyncio.sleep(0.01)
    to_other.write(second)
    answers = [await answer_of(other)]
    if leave:
        writer.close()
        while server.bodies:
            await asyncio.sleep(0.01)
    routes.go_on.set()
    if not leave:
        writer.write(rest)
        answers.append(await answer_of(reader))
    third, to_third = await asyncio.open_connection(*address)
    to_third.write(HEAD + bytes(SIZE))
    answers.append(await answer_of(third))
    assert server.bodies == 0
    await end(server, listening, [writer, to_other, to_third])
    return answers


REFUSED = b"503 overloaded: no memory is free for more bodies now."
WHOLE = b"200 %d" % SIZE


@pytest.mark.parametrize("second", [HEAD + bytes(SIZE), CHUNKED + chunk(SIZE)])
@pytest.mark.parametrize(
    ("first", "rest"),
    [
        (HEAD + bytes(SIZE - 10), bytes(10)),  # still being received
        (HEAD + bytes(SIZE), b""),  # being answered
        (CHUNKED + chunk(SIZE - 10), chunk(10) + b"0\r\n\r\n"),
    ],
)
def test_bodies_of_all_callers_together_are_bounded(first, rest, second):
    assert asyncio.run(bodies(first, rest, second, leave=False)) == [REFUSED, WHOLE, WHOLE]


@pytest.mark.parametrize("first", [HEAD + bytes(SIZE - 10), HEAD + bytes(SIZE)])  # received, and answered
def test_a_caller_that_leaves_leaves_no_memory_behind(first):
    assert asyncio.run(bodies(first, b"", HEAD + bytes(SIZE), leave=True)) == [REFUSED, WHOLE]


def test_what_is_announced_and_does_not_come_takes_nobody_s_room():
    async def last_of_ten() -> bytes:
        routes = Sizes()
        routes.go_on.set()
        server = Server(routes, Limits(1 << 20, SIZE * 3 // 2, 20, 10, 10, 1))
        listening = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
        address = listening.sockets[0].getsockname()
        pairs = [await asyncio.open_connection(*address) for _ in range(10)]
        for _, writer in pairs[:-1]:
            writer.write(HEAD + bytes(10))
        while server.bodies < 90:
            await asyncio.sleep(0.01)
        reader, writer = pairs[-1]
        writer.write(HEAD + bytes(SIZE))
        answer = await answer_of(reader)
        assert server.bodies == 90
        await end(server, listening, [writer for _, writer in pairs])
        assert server.bodies == 0
        return answer

    assert asyncio.run(last_of_ten()) == WHOLE


def test_a_request_behind_one_that_had_no_room_is_answered():
    async def both() -> list[bytes]:
        routes = Sizes()
        server = Server(routes, Limits(1 << 20, SIZE * 3 // 2, 10, 10, 10, 1))
        listening = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
        address = listening.sockets[0].getsockname()
        (_, writer), (other, to_other) = [await asyncio.open_connection(*address) for _ in range(2)]
        writer.write(HEAD + bytes(SIZE))
        while server.bodies < SIZE:
            await asyncio.sleep(0.01)
        short = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
        to_other.write(short % (SIZE - 1000) + bytes(SIZE - 1000) + short % 5 + bytes(5))  # in one read
        answers = [await answer_of(other)]
        routes.go_on.set()
        answers.append(await answer_of(other))
        await end(server, listening, [writer, to_other])
        return answers

    assert asyncio.run(both()) == [REFUSED, b"200 5"]


@pytest.mark.parametrize(("workers", "budget"), [(1, 256), (15, 128)])
def test_two_of_the_largest_bodies_have_room_in_each_front_end(workers, budget):
    assert Settings({}, workers=workers).bodies_bytes == budget * MIB


def test_a_body_without_room_is_counted_as_a_request_and_as_overload(bundle):
    with serving(bundle, "--threads", "1", "--workers", "1", "--queue-mb", "1", "--max-body-mb", "1") as running:
        opened = contextlib.ExitStack()
        held = [opened.enter_context(socket.create_connection(("127.0.0.1", running.http_port))) for _ in range(2)]
        for sock in held:
            sock.sendall(b"POST /recognize HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % MIB + bytes(MIB - 10))
        until(lambda: running.metric("sdpl_body_bytes") == 2 * (MIB - 10))
        assert running.request("POST", "/recognize", bytes(1000))[0] == 503
        requests = running.metric('sdpl_requests_http_total{model="model"}')
        refused = running.metric('sdpl_failures_total{model="model",reason="overloaded"}')
        assert running.request("POST", "/recognize", chunk(1000), {"Transfer-Encoding": "chunked"})[0] == 503
        assert running.metric('sdpl_requests_http_total{model="model"}') == requests + 1
        assert running.metric('sdpl_failures_total{model="model",reason="overloaded"}') == refused + 1 >= 2
        opened.close()
        until(lambda: running.metric("sdpl_body_bytes") == 0)
        assert running.request("POST", "/recognize", bytes(1000))[0] == 400  # there is room, and no image in it


def test_a_body_alone_has_room_though_it_is_larger_than_all_may_be():
    async def alone() -> bytes:
        routes = Sizes()
        routes.go_on.set()
        server = Server(routes, Limits(1 << 20, SIZE // 2, 10, 10, 10, 1))
        listening = await asyncio.get_running_loop().create_server(server.make, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(HEAD + bytes(SIZE))
        answer = await answer_of(reader)
        await end(server, listening, [writer])
        return answer

    assert asyncio.run(alone()) == WHOLE
