"""Which path means what, over HTTP."""

import json
import time
import uuid
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from sdpl.errors import nearest
from sdpl.server import description
from sdpl.server.app import App, retry_after
from sdpl.server.counters import prometheus_head
from sdpl.server.exchange import Exchange, Request, Response
from sdpl.server.infer import Infer
from sdpl.server.json_form import parse_json
from sdpl.server.openapi import document
from sdpl.server.recognize import Recognize
from sdpl.server.refusal import RefusalError

OPEN = ("", "v2/health/live", "v2/health/ready", "openapi.json")  # need no token; see `is_open`
PAGE = "page.html"


class Routes:
    """The HTTP side of an App."""

    def __init__(self, app: App):
        self.app = app
        self._page = (files(__package__) / PAGE).read_bytes()
        self._documents: dict[str, Callable[[Request], Response]] = {
            "": lambda _: Response(body=[self._page], content_type="text/html; charset=utf-8", headers=PAGE_HEADERS),
            "openapi.json": lambda _: as_json(document()),
            "metrics": lambda _: Response(body=[metrics(app)], content_type="text/plain; version=0.0.4; charset=utf-8"),
            "v2": lambda _: as_json(description.server_metadata(app.settings.allow_repository)),
            "v2/health/live": lambda _: as_json({"live": True}),
            "v2/health/ready": self._ready,
            "v2/models/stats": lambda _: as_json({"model_stats": [app.statistics(name) for name in app.names]}),
        }

    def route(self, request: Request) -> Response | Callable[[], Exchange]:
        path = request.path.strip("/")
        parts = path.split("/")
        if not is_open(path, parts):
            self.app.authorize(request.headers.get("authorization"))
        plain = self._documents.get(path)
        if plain is not None:
            allow(request, "GET", "HEAD")
            return plain(request)
        if path == "recognize":
            allow(request, "POST")
            model = request.query.get("model") or self.app.names[0]
            request.info = self.app.model(model)  # counted, however it ends
            return lambda: Recognize(self.app, request, model)
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            return self._model(request, parts[2], parts[3:])
        if parts[:2] == ["v2", "repository"]:
            return self._repository(request, parts[2:])
        known = ["/" + known for known in self._documents] + ["/recognize", "/v2/models/NAME/infer"]
        raise RefusalError("not_found", f"no path {request.path[:100]!r}: {nearest(request.path[:100], known)}")

    def refusal(self, request: Request | None, refused: RefusalError) -> Response:
        wait = retry_after(refused)
        headers = {"retry-after": wait} if wait else {}
        if refused.kind == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        response = as_json({"error": str(refused)}, refused.reason.http, headers)
        if request is not None:
            request.refused = refused
        return response

    def finish(self, request: Request, response: Response) -> None:
        """Before an answer is written: the caller's request id, or a new one, and its trace context go back."""
        headers = request.headers
        response.headers["x-request-id"] = headers.get("x-request-id") or uuid.uuid4().hex
        if "traceparent" in headers:
            response.headers["traceparent"] = headers["traceparent"]

    def finished(self, request: Request, response: Response, sent: int) -> None:
        app, refused = self.app, request.refused
        if request.info is not None:
            app.count(request.info, "http", request.length, request.started_ns, refused)
            app.tracer.record("http", request.headers, request.started_ns, refused, request.log)
        if app.log.on:
            app.log.write(
                transport="http",
                peer=request.peer,
                method=request.method,
                path=request.path,
                status=response.status,
                received=request.length,
                sent=sent,
                ms=round((time.monotonic_ns() - request.started_ns) / 1e6, 3),
                id=response.headers.get("x-request-id"),
                trace=request.headers.get("traceparent"),
                error=str(refused) if refused else None,
                **request.log,
            )

    def _ready(self, request: Request) -> Response:
        app = self.app
        status = 200 if app.ready else 503
        return as_json({"ready": app.ready, "draining": app.draining, "models": app.states()}, status)

    def _model(self, request: Request, name: str, rest: list[str]) -> Response | Callable[[], Exchange]:
        app, version = self.app, ""
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
        match rest:
            case ["infer"]:
                allow(request, "POST")
                request.info = app.model(name, version)
                return lambda: Infer(app, request, name, version)
            case []:
                allow(request, "GET", "HEAD")
                return as_json(description.metadata(app.model(name, version)))
            case ["config"]:
                allow(request, "GET", "HEAD")
                return as_json(description.config(app.model(name, version)))
            case ["ready"]:
                allow(request, "GET", "HEAD")
                app.model(name, version)
                return as_json({"name": name, "ready": True})
            case ["stats"]:
                allow(request, "GET", "HEAD")
                app.model(name, version)
                return as_json({"model_stats": [app.statistics(name)]})
        raise RefusalError("not_found", f"no path {request.path[:100]!r} of a model: infer, config, ready or stats.")

    def _repository(self, request: Request, rest: list[str]) -> Callable[[], Exchange]:
        app = self.app
        match rest:
            case ["index"]:
                allow(request, "POST", "GET")
                return lambda: Later(request, lambda body: index(app, body))
            case ["models", name, ("load" | "unload") as action]:
                allow(request, "POST")

                async def change(body: bytes) -> Response:
                    await app.change(name, action)
                    return as_json({})

                return lambda: Later(request, change)
        raise RefusalError(
            "not_found", f"no path {request.path[:100]!r}: index, models/NAME/load or models/NAME/unload."
        )


class Later:
    """An answer that is made of a small body."""

    MAX = 1 << 16

    def __init__(self, request: Request, make: Callable[[bytes], Awaitable[Response]]):
        if request.length > self.MAX:
            raise RefusalError("too_large", f"the body has {request.length} bytes (limit {self.MAX} here).")
        self._body = bytearray(request.length)
        self.memory, self._make = memoryview(self._body), make

    def filled(self) -> None:
        """The body is whole."""

    async def answer(self) -> Response:
        return await self._make(bytes(self._body))

    def abandon(self) -> None:
        """Nothing is held."""


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(status, [json.dumps(content).encode()], headers=headers or {})


def is_open(path: str, parts: list[str]) -> bool:
    """Whether a path needs no token: the page, its description, and health, that of single models too, as over gRPC."""
    match parts:
        case ["v2", "models", _, "ready"] | ["v2", "models", _, "versions", _, "ready"]:
            return True
    return path in OPEN


def allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise RefusalError("method", f"{request.path[:100]}: use {' or '.join(methods)}, not {request.method[:20]}.")


def metrics(app: App) -> bytes:
    """All of it in Prometheus's text format."""
    lines = [*app.counters.to_prometheus(), *prometheus_head("sdpl_model_ready", "gauge", "1: it is served.")]
    lines += [f'sdpl_model_ready{{model="{each["name"]}"}} {int(each["state"] == "READY")}' for each in app.states()]
    lines += prometheus_head("sdpl_model_unloaded", "gauge", "1: it was taken out of service on request.")
    lines += [f'sdpl_model_unloaded{{model="{name}"}} {int(app.is_unloaded(name))}' for name in app.names]
    lines += prometheus_head("sdpl_model_info", "gauge", "What is served.")
    for link in app.links[:1]:
        for name, info in link.models.items():
            about = info.description
            lines.append(
                f'sdpl_model_info{{model="{name}",target="{about["target"]}",library="{about["backend"].get("library")}",'
                f'checkpoint="{about["checkpoint_sha256"][:12]}",generation="{about["generation"]:016x}"}} 1'
            )
    return ("\n".join(lines) + "\n").encode()


async def index(app: App, body: bytes) -> Response:
    only_ready = bool(body) and parse_json(body).get("ready", False)
    return as_json([state for state in app.states() if state["state"] == "READY" or not only_ready])


PAGE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
