"""Load on a running server, and what it answered: closed loops (so many callers, each waiting for its answer) and open
loops (requests at given times, whatever the server does)."""

import asyncio
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sdpl.errors import UserError
from sdpl.progress import Progress, Report, silent
from sdpl.runtime.environment import environment

MAX_CONNECTIONS = 512  # of an open loop; a request that finds none free is not sent
SEED = 0  # of the arrival times
PATIENCE_S = 60.0  # for one answer


@dataclass(frozen=True)
class Load:
    """One measurement. Latencies in ms, of answers with scores only; in an open loop they begin when the request was
    due, so that waiting for a connection counts. `refused` are answers 503, `errors` all others and none at all;
    `unsent` are requests that this client could not send in time."""

    loop: str  # "closed" or "open"
    callers: int | None
    offered_per_s: float | None
    input: str
    seconds: float
    answered: int
    refused: int
    errors: int
    unsent: int
    answered_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


@dataclass
class _Tally:
    times_ms: list[float] = field(default_factory=list)
    refused: int = 0
    errors: int = 0
    unsent: int = 0

    def add(self, status: int, since: float) -> None:
        if status == 200:
            self.times_ms.append(1000 * (time.perf_counter() - since))
        elif status == 503:
            self.refused += 1
        else:
            self.errors += 1

    def load(self, **about: Any) -> Load:
        times = self.times_ms
        p50, p95, p99 = np.percentile(times, (50, 95, 99)).tolist() if times else (None, None, None)
        return Load(
            answered=len(times),
            refused=self.refused,
            errors=self.errors,
            unsent=self.unsent,
            answered_per_s=len(times) / about["seconds"],
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            **about,
        )


@dataclass(frozen=True)
class Target:
    """A server and the request that is sent to it, as the bytes that go over the wire."""

    host: str
    port: int
    request: bytes
    model: str
    description: dict[str, Any]


def find_target(url: str, model: str | None, encoded: bool, token: str | None = None) -> Target:
    """Ask a server what it serves, and prepare one request: noise as pixels, or as a JPEG of the model's size.

    Raises UserError when the server does not answer or has no such model.
    """
    parts = urllib.parse.urlsplit(url if "//" in url else f"//{url}", scheme="http")
    if parts.scheme != "http" or not parts.hostname:
        raise UserError(f"--url {url!r}: expected http://HOST:PORT.")
    host, port = parts.hostname, parts.port or 80
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    base = f"http://{parts.netloc}"
    if model is None:
        model = _ask(base, "/v2/repository/index", headers, b"")[0]["name"]
    about = _ask(base, f"/v2/models/{urllib.parse.quote(model)}", headers)
    side = next(each["shape"][1] for each in about["inputs"] if each["name"] == "image")
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    text, data = _encoded(image) if encoded else _pixels(image)
    lines = [
        f"POST /v2/models/{urllib.parse.quote(model)}/infer HTTP/1.1",
        f"Host: {parts.netloc}",
        *(f"{name}: {value}" for name, value in headers.items()),
        f"Inference-Header-Content-Length: {len(text)}",
        f"Content-Length: {len(text) + len(data)}",
    ]
    return Target(host, port, "\r\n".join([*lines, "", ""]).encode() + text + data, model, about)


def measure_server(
    url: str,
    model: str | None,
    callers: list[int],
    rates: list[float],
    seconds: float,
    encoded: bool,
    token: str | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Measure a server at numbers of callers and at rates (requests per second), `seconds` each: plain values.

    Raises UserError when it does not answer.
    """
    target = find_target(url, model, encoded, token)
    kind = "jpeg" if encoded else "image"
    loads = []
    for count in callers:
        loads.append(asyncio.run(_closed(target, count, seconds, kind)))
        report(Progress(f"{count} callers: {loads[-1].answered_per_s:.1f} answers/s"))
    for rate in rates:
        loads.append(asyncio.run(_open(target, rate, seconds, kind)))
        report(Progress(f"{rate:g} requests/s: {loads[-1].answered_per_s:.1f} answers/s"))
    return {
        "environment": environment(),
        "url": url,
        "model": target.model,
        "platform": target.description.get("platform"),
        "loads": [asdict(load) for load in loads],
    }


async def _closed(target: Target, callers: int, seconds: float, kind: str) -> Load:
    """`callers` connections, each with one request at a time. The first fifth is not counted."""
    tally, begin = _Tally(), time.perf_counter() + seconds / 5
    end = begin + seconds

    async def call() -> None:
        connection = _Client(target)
        while (since := time.perf_counter()) < end:
            status = await connection.ask()
            if since >= begin:
                tally.add(status, since)
            if status != 200:
                await asyncio.sleep(0.01)
        connection.close()

    await asyncio.gather(*(call() for _ in range(callers)))
    return tally.load(loop="closed", callers=callers, offered_per_s=None, input=kind, seconds=seconds)


async def _open(target: Target, rate: float, seconds: float, kind: str) -> Load:
    """Requests at random times (Poisson), `rate` a second on average."""
    tally = _Tally()
    free: list[_Client] = []
    asking: set[asyncio.Task[None]] = set()
    gaps = np.random.default_rng(SEED).exponential(1 / rate, max(1, int(rate * seconds)))
    start = time.perf_counter()

    async def call(connection: _Client, since: float) -> None:
        tally.add(await connection.ask(), since)
        free.append(connection)

    for due in (start + np.cumsum(gaps)).tolist():
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        if not free and len(asking) >= MAX_CONNECTIONS:
            tally.unsent += 1
            continue
        task = asyncio.create_task(call(free.pop() if free else _Client(target), due))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    taken = time.perf_counter() - start  # with the last answers, so that a backlog does not count as throughput
    for connection in free:
        connection.close()
    return tally.load(loop="open", callers=None, offered_per_s=rate, input=kind, seconds=taken)


class _Client:
    """One connection, opened when first used and again when it was lost."""

    def __init__(self, target: Target):
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> int:
        """The status of an answer; 0 when there is none."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._streams is None:
                    self._streams = await asyncio.open_connection(self._target.host, self._target.port)
                reader, writer = self._streams
                writer.write(self._target.request)
                head = await reader.readuntil(b"\r\n\r\n")
                fields = head.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in fields if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                if b"connection: close" in fields:
                    self.close()
                return int(head[9:12])
        except (OSError, EOFError, TimeoutError, ValueError, StopIteration):
            self.close()
            return 0

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _pixels(image: np.ndarray) -> tuple[bytes, bytes]:
    """JSON and bytes of a request with one image as pixels."""
    return _document("image", "UINT8", (1, *image.shape), image.nbytes), image.tobytes()


def _encoded(image: np.ndarray) -> tuple[bytes, bytes]:
    from sdpl.runtime.bench import jpeg
    from sdpl.server.protocol import LENGTH

    file = jpeg(image)
    data = LENGTH.pack(len(file)) + file
    return _document("jpeg", "BYTES", (1, 1), len(data)), data


def _document(name: str, datatype: str, shape: tuple[int, ...], size: int) -> bytes:
    source = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}
    wanted = {"name": "scores", "parameters": {"binary_data": True}}
    return json.dumps({"inputs": [source], "outputs": [wanted]}).encode()


def _ask(base: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Any:
    try:
        with urllib.request.urlopen(urllib.request.Request(base + path, body, headers), timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise UserError(f"{base}{path}: {error.code}, {text[:300]}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{base}{path}: no server answers there ({getattr(error, 'reason', error)}).") from None
