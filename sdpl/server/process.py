"""Entry of the server's processes: `python -m sdpl.server.process engine|frontend FD`.

FD is a Unix socket to the supervisor. Its first message holds the settings (so that no token is seen in a list of
processes) and the file descriptors to work with; its end means that the supervisor is gone, and the process ends too.
"""

import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

from sdpl.server.channel import Channel, Message
from sdpl.server.counters import Counters
from sdpl.server.settings import Settings


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor's business
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    setup = receive_setup(fd)
    if kind == "engine":
        from sdpl.server.engine import Engine

        Engine(setup.settings, setup.listener, setup.control, setup.counters, setup.unloaded).run()
    else:
        from sdpl.server.frontend import serve

        serve(setup)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
