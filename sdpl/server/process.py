"""Entry of the server's processes: `python -m sdpl.server.process engine|frontend FD`.

FD is a Unix socket to the supervisor. Its first message holds the settings (so that no token is seen in a list of
processes) and the file descriptors to work with; its end means that the supervisor is gone, and the process ends too.
"""

import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from sdpl.server.channel import Channel, ClosedError, Message
from sdpl.server.counters import Counters
from sdpl.server.settings import Settings
from sdpl.signals import STOPS


@dataclass
class Setup:
    """What the supervisor gave. listener: where callers, or front ends, connect."""

    settings: Settings
    control: Channel
    counters: Counters
    listener: socket.socket
    engines: list[str]  # paths of their Unix sockets
    unloaded: list[int]  # models that were taken out of service


def receive_setup(fd: int) -> Setup:
    sock = socket.socket(fileno=fd)
    message = _first(sock)
    content: dict[str, Any] = message.content
    settings = Settings.from_json(content["settings"])
    listener_fd, counters_fd = message.fds
    counters = Counters(counters_fd, content["processes"], list(settings.models), content["row"])
    counters.clear_gauges()
    return Setup(
        settings, Channel(sock), counters, socket.socket(fileno=listener_fd), content["engines"], content["unloaded"]
    )


def _first(sock: socket.socket) -> Message:
    import select

    channel = Channel(sock)
    while True:
        select.select([sock], [], [])
        for message in channel.receive():
            return message


def main(kind: str, fd: int) -> None:
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)  # the supervisor's business
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    with contextlib.suppress(ClosedError):  # the supervisor is gone already
        _serve(kind, receive_setup(fd))


def _serve(kind: str, setup: Setup) -> None:
    if kind == "engine":
        from sdpl.server.engine import Engine

        Engine(setup.settings, setup.listener, setup.control, setup.counters, setup.unloaded).run()
    else:
        from sdpl.server.frontend import serve

        serve(setup)


def _leave(run: Callable[[], None]) -> NoReturn:
    """Run, and end the process at once. Python would first stop the threads that are left, such as one that opens a
    bundle; one that is inside a library in C++ then ends in "terminate called without an active exception"."""
    status = 0
    try:
        run()
    except SystemExit as error:
        print(error, file=sys.stderr)
        status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(lambda: main(sys.argv[1], int(sys.argv[2])))
