"""What a front end does, whichever transport asks: choosing an engine, decoding, scoring, and telling about itself."""

import asyncio
import functools
import hmac
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdpl.errors import UserError, nearest
from sdpl.pipeline import Decoder, available_cores
from sdpl.preprocess import preprocess
from sdpl.server.counters import HISTOGRAMS, Counters
from sdpl.server.lease import Lease, ModelInfo
from sdpl.server.link import Link
from sdpl.server.log import AccessLog
from sdpl.server.protocol import Ask
from sdpl.server.refusal import RefusalError
from sdpl.server.settings import Settings
from sdpl.server.tracing import Tracer
from sdpl.server.watchdog import Decoding

LOAD_TIMEOUT_S = 600.0


class App:
    """One front end's state. `links` are its engines'."""

    def __init__(self, settings: Settings, sockets: Sequence[str], counters: Counters):
        """sockets: paths of the engines' Unix sockets."""
        self.settings, self.counters = settings, counters
        self.links = [Link(path, settings, counters) for path in sockets]
        self.decoder = Decoder(max(1, available_cores() // settings.workers))
        self.decoding = Decoding(counters, time.monotonic)
        self.log = AccessLog(settings.access_log, counters)
        self.tracer = Tracer(settings.otlp_endpoint)
        self.draining = False
        self.names = list(settings.models)

    # Choosing

    def authorize(self, header: str | None) -> None:
        """Check "Bearer TOKEN". Raises RefusalError."""
        token = self.settings.token
        if token is not None and not hmac.compare_digest((header or "").encode(), f"Bearer {token}".encode()):
            raise RefusalError("unauthorized", "this server wants 'Authorization: Bearer TOKEN' with its token.")

    def model(self, name: str, version: str = "") -> ModelInfo:
        """A model that is ready. Raises RefusalError."""
        return self.pick(name, version)[1]

    def pick(self, name: str, version: str = "") -> tuple[Link, ModelInfo]:
        """The least busy engine that serves a model. Raises RefusalError when it is unknown or not ready."""
        if version not in ("", "1"):
            raise RefusalError("not_found", f"model {name!r} has only version 1.")
        links = [link for link in self.links if name in link.models]
        if links:
            link = min(links, key=lambda each: each.in_hand)
            return link, link.models[name]
        if name not in self.names:
            raise RefusalError("not_found", f"no model {name[:100]!r}: {nearest(name[:100], self.names)}")
        raise RefusalError("unavailable", f"model {name!r} is not ready: {self.reason(name)}", 1)

    def reason(self, name: str) -> str:
        """Why a model is not ready, or its newest bundle was not taken; "" when all is well."""
        reasons = [link.reasons.get(name, "it is being loaded") for link in self.links]
        return next((reason for reason in reasons if reason), "")

    # Scoring

    async def decode(self, lease: Lease, files: Sequence[bytes]) -> None:
        """Decode and resize files into a lease's images, in threads. Raises RefusalError naming the first bad one."""
        info = lease.hold.info
        load = functools.partial(_decode_into, side=info.geometry.image_size, decoding=self.decoding)
        futures = [self.decoder.submit(load, (file, image)) for file, image in zip(files, lease.images, strict=True)]
        try:
            times = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except UserError as error:
            raise RefusalError("invalid", str(error)) from None
        finally:
            unfinished = [f for f in futures if not f.cancel() and not f.done()]
            if unfinished:  # the slots must not be given back while a thread writes into them
                await asyncio.shield(asyncio.gather(*map(asyncio.wrap_future, unfinished), return_exceptions=True))
        for seconds in times:
            self.counters.observe(info.index, "decode_seconds", seconds)

    async def run(self, lease: Lease, ask: Ask, started_ns: int) -> None:
        """Have a lease's images scored. Raises RefusalError when the deadline passes or the engine is lost."""
        timeout_s = self.settings.timeout_ms / 1000
        if ask.timeout_s is not None:
            timeout_s = min(timeout_s, ask.timeout_s)
        await lease.run(ask.attention, started_ns + int(timeout_s * 1e9))

    def count(self, info: ModelInfo, transport: str, size: int, started_ns: int, refused: RefusalError | None) -> None:
        """Count one inference request that is over."""
        counters = self.counters
        counters.add(info.index, f"requests_{transport}")
        counters.add(info.index, "request_bytes", size)
        if refused is not None:
            counters.add(info.index, f"failures.{refused.kind}")
        counters.observe(info.index, "total_seconds", (time.monotonic_ns() - started_ns) / 1e9)

    # Telling

    @property
    def ready(self) -> bool:
        return not self.draining and all(any(name in link.models for link in self.links) for name in self.names)

    @property
    def settled(self) -> bool:
        """Whether every engine has made every model ready, or was told not to."""
        return all(link.states.get(name) in ("ready", "unloaded") for link in self.links for name in self.names)

    def is_unloaded(self, name: str) -> bool:
        """Whether a model is not served because somebody wished so."""
        return all(link.states.get(name) == "unloaded" for link in self.links)

    def states(self) -> list[dict[str, str]]:
        """The repository index."""
        found = []
        for name in self.names:
            ready = any(name in link.models for link in self.links)
            state = "READY" if ready else "UNAVAILABLE"
            found.append({"name": name, "version": "1", "state": state, "reason": self.reason(name)})
        return found

    def statistics(self, name: str) -> dict[str, Any]:
        """The statistics extension, of all front ends together."""
        model, c = self.names.index(name), self.counters
        failures = sum(c.total(model, column) for column in c.columns("failures."))
        requests = c.total(model, "requests_http") + c.total(model, "requests_grpc")
        images, batches = c.total(model, "images"), c.total(model, "batches")
        sums = {key: c.histogram(model, key)[1] for key in HISTOGRAMS}
        durations = {
            "success": (requests - failures, sums["total_seconds"]),
            "fail": (failures, 0),
            "queue": (images, sums["wait_seconds"]),
            "compute_input": (images, sums["decode_seconds"]),
            "compute_infer": (images, sums["run_seconds"]),
            "compute_output": (images, 0),
            "cache_hit": (0, 0),
            "cache_miss": (0, 0),
        }
        return {
            "name": name,
            "version": "1",
            "last_inference": round(1000 * c.largest(model, "last_inference_timestamp_seconds")),
            "inference_count": int(images),
            "execution_count": int(batches),
            "inference_stats": {k: {"count": int(n), "ns": int(s * 1e9)} for k, (n, s) in durations.items()},
            "batch_stats": [],
        }

    # The repository

    async def change(self, name: str, action: str) -> None:
        """Load (again) or unload a model on all engines, and wait for it. Raises RefusalError when it cannot be."""
        if not self.settings.allow_repository:
            raise RefusalError("forbidden", "loading and unloading is off: start sdpl-serve with --allow-repository.")
        if name not in self.names:
            raise RefusalError("not_found", f"no model {name[:100]!r}: {nearest(name[:100], self.names)}")
        if not all(link.connected for link in self.links):
            raise RefusalError("unavailable", "an engine is being restarted; try again.", 1)
        orders = [link.order({action: self.names.index(name)}) for link in self.links]
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                reasons = await asyncio.gather(*orders)
        except TimeoutError:
            raise RefusalError(
                "deadline", f"model {name!r}: {action} takes longer than {LOAD_TIMEOUT_S:g} s."
            ) from None
        if reason := next((reason for reason in reasons if reason), ""):
            raise RefusalError("invalid", f"model {name!r} was not loaded: {reason}")

    async def drained(self, busy: Any) -> None:
        """Wait until `busy()` is false, at most `drain_s`."""
        end = time.monotonic() + self.settings.drain_s
        while busy() and time.monotonic() < end:
            await asyncio.sleep(0.02)


def retry_after(refused: RefusalError) -> str | None:
    return None if refused.retry_after_s is None else str(math.ceil(refused.retry_after_s))


def _decode_into(work: tuple[bytes, np.ndarray], side: int, decoding: Decoding) -> float:
    """Decode a file into an image [S,S,3]; the seconds it took."""
    start = time.perf_counter()
    file, image = work
    decoding.begin(threading.get_ident())
    try:
        image[...] = preprocess(file, side)
    finally:
        decoding.end(threading.get_ident())
    return time.perf_counter() - start
