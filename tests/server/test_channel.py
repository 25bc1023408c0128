import os
import socket

import pytest

from sdpl.server.channel import CONTROL, HEADER, SUBMIT, Channel, ClosedError


def pair() -> tuple[Channel, Channel]:
    left, right = socket.socketpair()
    return Channel(left), Channel(right)


def received(channel: Channel, count: int) -> list:
    messages = []
    while len(messages) < count:
        messages += channel.receive()
    return messages


def test_messages_of_both_kinds_keep_their_order_and_their_descriptors():
    left, right = pair()
    reading, writing = os.pipe()
    left.send(HEADER.pack(SUBMIT, 1, 2, 3, 4, 5, 6))
    left.control({"text": "ä" * 1000}, (writing,))
    left.send(HEADER.pack(SUBMIT, 0, 0, 9, 0, 0, 0))
    first, second, third = received(right, 3)
    assert (first.kind, first.status, first.model, first.slot, first.a, first.b, first.c) == (SUBMIT, 1, 2, 3, 4, 5, 6)
    assert second.kind == CONTROL
    assert second.content == {"text": "ä" * 1000}
    os.write(second.fds[0], b"x")
    assert os.read(reading, 1) == b"x"
    assert third.slot == 9
    os.close(reading)
    os.close(second.fds[0])
    left.close()
    right.close()


def test_what_the_socket_does_not_take_waits_and_nothing_is_lost():
    left, right = pair()
    for i in range(20_000):
        left.send(HEADER.pack(SUBMIT, 0, 0, i, 0, 0, 0))
    assert left.waiting
    slots = []
    while len(slots) < 20_000:
        slots += [message.slot for message in right.receive()]
        left.flush()
    assert slots == list(range(20_000))
    left.close()
    right.close()


def test_the_end_of_the_other_side_is_told():
    left, right = pair()
    left.close()
    with pytest.raises(ClosedError):
        list(right.receive())
    with pytest.raises(ClosedError):
        right.send(b"x" * 32)
    right.close()
