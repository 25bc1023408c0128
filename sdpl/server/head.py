"""HTTP/1.1: the head of a request, and the chunks that may follow it, parsed by httptools; the head of a response."""

import contextlib
import time
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, unquote

import httptools

from sdpl.server.exchange import Request, Response
from sdpl.server.refusal import RefusalError

MAX_HEAD = 16_384  # bytes
PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Head:
    """What httptools calls back."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


class ChunkedBody:
    """A chunked body, gathered by the parser that has read its head."""

    def __init__(self, parser: Any, head: Head):
        self._parser, self._head = parser, head

    def feed(self, data: bytes) -> None:
        """Raises RefusalError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            raise RefusalError("invalid", "the chunked body is malformed.") from None

    @property
    def content(self) -> bytearray:
        """What has come in."""
        return self._head.body

    @property
    def is_whole(self) -> bool:
        return self._head.complete


def parse_head(data: bytes, peer: str) -> tuple[Request, ChunkedBody | None]:
    """A head, and what gathers its body when that is chunked. Raises RefusalError."""
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        with contextlib.suppress(httptools.HttpParserUpgrade):  # no other protocol is spoken: the request is as without
            parser.feed_data(data)
        method, url = parser.get_method().decode("ascii"), httptools.parse_url(head.url)
    except (httptools.HttpParserError, UnicodeDecodeError):
        raise RefusalError("invalid", "the head is malformed.") from None
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    lengths = [value for name, value in head.headers if name == b"content-length"]
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in head.headers)
    chunked = "transfer-encoding" in headers
    if len(lengths) > 1 or (lengths and (chunked or not lengths[0].isdigit() or len(lengths[0]) > 18)):
        raise RefusalError("invalid", "its Content-Length is malformed.")
    if chunked and headers["transfer-encoding"].lower() != "chunked":
        raise RefusalError("invalid", f"unknown Transfer-Encoding {headers['transfer-encoding']!r}.")
    if chunked and "upgrade" in headers:  # the parser takes what follows for another protocol
        raise RefusalError("invalid", "Transfer-Encoding and Upgrade do not go together here.")
    query = {name: values[-1] for name, values in parse_qs((url.query or b"").decode("latin-1"), True).items()}
    request = Request(
        method=method,
        path=unquote((url.path or b"/").decode("latin-1")),
        query=query,
        headers=headers,
        length=int(lengths[0]) if lengths else 0,
        keep_alive=not closes and parser.get_http_version() == "1.1",  # (the parser forgets it once it is through)
        started_ns=time.monotonic_ns(),
        peer=peer,
    )
    return request, ChunkedBody(parser, head) if chunked else None


def format_head(response: Response, size: int, close: bool) -> bytes:
    """The head of an answer. size: bytes of its body; close: whether the connection ends with it."""
    lines = [
        f"HTTP/1.1 {response.status} {PHRASES.get(response.status, '')}",
        f"content-type: {response.content_type}",
        f"content-length: {size}",
        *(f"{name}: {value}" for name, value in response.headers.items()),
        *(["connection: close"] if close else []),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
