"""A front end's side of an engine that does not do its part."""

import asyncio
import os
import socket
import time

import pytest

from sdpl.server import link
from sdpl.server.channel import CANCEL, CONTROL, SUBMIT, Channel
from sdpl.server.counters import Counters
from sdpl.server.link import Lease, Link
from sdpl.server.refusal import RefusalError
from sdpl.server.settings import Settings

SETTINGS = Settings({"model": "model.sdpl"})
SERVING = {
    "generation": 1,
    "geometry": {"image_size": 8, "categories": 2, "map_size": (1, 1)},
    "categories": ["a", "b"],
    "thresholds": [0.5, 0.5],
}
TASKS: set[asyncio.Task] = set()  # so that they are not collected
STATE = {"model": 0, "announcement": 1, "line": 7, "serving": SERVING, "state": "ready", "reason": ""}


async def leased(path: str) -> tuple[Link, Lease, Channel]:
    """A lease on an engine that has announced a model, and the engine's end of the connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = Counters.memory(1, 1)
        opened = Link(path, SETTINGS, Counters(fd, 1, ["model"]))
        os.close(fd)
        TASKS.add(asyncio.create_task(opened.run()))
        while not opened.connected:
            await asyncio.sleep(0.01)
        engine = Channel(listener.accept()[0])
    engine.control(STATE)
    while "model" not in opened.models:
        await asyncio.sleep(0.01)
    return opened, opened.lease(opened.models["model"], 1), engine


async def heard(engine: Channel, count: int) -> list[int]:
    """The kinds of the next messages to the engine, but for control."""
    kinds: list[int] = []
    while len(kinds) < count:
        for message in engine.receive():
            for fd in message.fds:
                os.close(fd)
            if message.kind != CONTROL:
                kinds.append(message.kind)
        await asyncio.sleep(0.01)
    return kinds


def test_an_engine_that_says_nothing_keeps_no_caller_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(link, "GRACE_S", 0.05)

    async def ask() -> None:
        opened, lease, engine = await leased(str(tmp_path / "engine"))
        with pytest.raises(RefusalError, match="did not answer before the deadline") as caught:
            await lease.run(attention=False, deadline_ns=time.monotonic_ns())
        assert caught.value.kind == "deadline"
        lease.release()
        assert await heard(engine, 2) == [SUBMIT, CANCEL]
        assert opened.in_hand == 1  # the engine may still write there
        engine.close()
        while opened.in_hand:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(ask(), 30))


def test_an_order_to_an_engine_that_is_lost_is_refused(tmp_path):
    async def order() -> None:
        opened, lease, engine = await leased(str(tmp_path / "engine"))
        lease.release()
        future = opened.order({"unload": 0})
        engine.close()
        with pytest.raises(RefusalError, match="engine was lost"):
            await future

    asyncio.run(asyncio.wait_for(order(), 30))
