"""The HTTP side alone: memory of bodies that are being received or answered."""

import asyncio
from collections.abc import Callable

import pytest

from sdpl.server.exchange import Exchange, Limits, Request, Response
from sdpl.server.http import Server
from sdpl.server.refusal import RefusalError
from sdpl.server.routes import Later

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
    while server.bodies == 0:
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
        (HEAD + bytes(10), bytes(SIZE - 10)),  # still being received
        (HEAD + bytes(SIZE), b""),  # being answered
        (CHUNKED + chunk(SIZE - 10), chunk(10) + b"0\r\n\r\n"),
    ],
)
def test_bodies_of_all_callers_together_are_bounded(first, rest, second):
    assert asyncio.run(bodies(first, rest, second, leave=False)) == [REFUSED, WHOLE, WHOLE]


def test_a_caller_that_leaves_leaves_no_memory_behind():
    assert asyncio.run(bodies(HEAD + bytes(10), b"", HEAD + bytes(SIZE), leave=True)) == [REFUSED, WHOLE]


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
