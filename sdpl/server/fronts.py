"""The front ends that an engine serves: their channels, on the selector that it waits with."""

import selectors
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sdpl.server.arena import Arena
from sdpl.server.channel import Channel, ClosedError


@dataclass(eq=False)
class Front:
    """One front end that is connected. arenas: by line. heard: the last announcement it has read."""

    channel: Channel
    arenas: dict[int, Arena] = field(default_factory=dict)
    heard: int = 0


class Fronts:
    """Those that are connected. What is sent to one that has gone is dropped: its end comes in by reading too."""

    def __init__(self, listener: socket.socket):
        """listener: a Unix socket that front ends connect to."""
        listener.setblocking(False)
        self._listener = listener
        self._by_fd: dict[int, Front] = {}  # of its channel
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)

    def __iter__(self) -> Iterator[Front]:
        return iter(list(self._by_fd.values()))

    def of(self, fd: int) -> Front:
        return self._by_fd[fd]

    def accept(self) -> Front | None:
        """One that wants to connect; None when it has gone again."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return None
        front = Front(Channel(sock))
        self._by_fd[sock.fileno()] = front
        self.selector.register(front.channel, selectors.EVENT_READ)
        return front

    def lose(self, front: Front) -> None:
        self.selector.unregister(front.channel)
        del self._by_fd[front.channel.fileno()]
        front.channel.close()

    def send(self, front: Front, data: bytes) -> None:
        """Packed headers."""
        try:
            front.channel.send(data)
            self._watch(front)
        except ClosedError:
            pass

    def tell(self, front: Front, content: dict[str, Any]) -> None:
        if front.channel.fileno() not in self._by_fd:  # it was lost meanwhile
            return
        try:
            front.channel.control(content)
            self._watch(front)
        except ClosedError:
            pass

    def flush(self, front: Front) -> None:
        """Go on sending what waits. Raises ClosedError."""
        front.channel.flush()
        self._watch(front)

    def _watch(self, front: Front) -> None:
        """Ask to be told when the socket takes more, while something waits."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if front.channel.waiting else 0)
        if self.selector.get_key(front.channel).events != events:
            self.selector.modify(front.channel, events)
