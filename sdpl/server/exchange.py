"""What passes between the HTTP transport and what a server does with requests."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sdpl.server.refusal import RefusalError

if TYPE_CHECKING:
    from sdpl.server.lease import ModelInfo


@dataclass(eq=False)
class Request:
    """A request's head. length: of its body."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    length: int
    keep_alive: bool
    started_ns: int
    peer: str
    log: dict[str, Any] = field(default_factory=dict)  # what the access log says beside
    info: "ModelInfo | None" = None  # the model that an inference is for
    refused: RefusalError | None = None


@dataclass
class Response:
    """An answer. body: pieces in order."""

    status: int = 200
    body: Iterable[bytes | memoryview] = ()
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Exchange(Protocol):
    """One request being received and answered. memory: where the body goes next."""

    memory: memoryview

    def filled(self) -> None:
        """`memory` is full: put the next in its place if more is to come. Raises RefusalError."""

    async def answer(self) -> Response:
        """The body is here. Raises RefusalError; CancelledError when the caller has gone."""

    def abandon(self) -> None:
        """The request will not be answered: give back what it holds. May come at any time, more than once."""


class Routes(Protocol):
    """What a server does with requests."""

    def route(self, request: Request) -> Response | Callable[[], Exchange]:
        """A head has come in: the answer itself where no body is wanted, else what receives the body, to be called once
        its length is known. Both raise RefusalError."""

    def refusal(self, request: Request | None, refused: RefusalError) -> Response:
        """How a refusal looks."""

    def finish(self, request: Request, response: Response) -> None:
        """An answer will be written."""

    def finished(self, request: Request, response: Response, sent: int) -> None:
        """An answer was written, or nobody is there any more to read it."""


@dataclass(frozen=True)
class Limits:
    """Of one front end's HTTP side."""

    max_body: int
    max_bodies: int  #: of what has come in of all that are in hand; one alone may be larger
    max_connections: int
    header_timeout_s: float
    idle_timeout_s: float
    min_bytes_per_s: int
