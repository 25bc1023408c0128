"""POST /recognize: a photo as the body or in a form, plain JSON back. For people, scripts, and the page at /."""

import asyncio
import email.parser
import email.policy
import json
import time
from typing import Any

import numpy as np

from sdpl.errors import nearest
from sdpl.server import protocol
from sdpl.server.app import App
from sdpl.server.exchange import Request, Response
from sdpl.server.lease import Lease
from sdpl.server.protocol import Ask, TensorSpec
from sdpl.server.refusal import RefusalError

KEYS = ("model", "threshold", "top_k", "attention")  # of the query
MAPS = 20  # categories whose attention is sent, the best ones


class Recognize:
    """One photo. Query: model (the first one by default), threshold, top_k, attention=1."""

    def __init__(self, app: App, request: Request, model: str):
        self._app, self._request = app, request
        unknown = next((key for key in request.query if key not in KEYS), None)
        if unknown is not None:
            raise RefusalError("invalid", f"no parameter {unknown[:100]!r}: {nearest(unknown[:100], KEYS)}")
        self._link, self._info = app.pick(model)
        self._link.admit(self._info, 1)
        if not request.length:
            raise RefusalError("invalid", "the body is empty; expected an image (curl --data-binary @photo.jpg).")
        self._ask = self._asked(request)
        self._lease: Lease | None = self._link.lease(self._info, 1)
        self._body = bytearray(request.length)
        self.memory = memoryview(self._body)

    def filled(self) -> None:
        """The body is whole."""

    def abandon(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    async def answer(self) -> Response:
        app, lease, request = self._app, self._lease, self._request
        assert lease is not None
        photo = bytes(self._body)
        kind = request.headers.get("content-type", "")
        if kind.lower().startswith("multipart/form-data"):
            photo = await asyncio.wrap_future(app.decoder.submit(lambda body: photo_of_form(kind, body), photo))
        start = time.perf_counter()
        await app.decode(lease, [photo])
        decoded = time.perf_counter()
        await app.run(lease, self._ask, request.started_ns)
        took = {
            "decode": 1000 * (decoded - start),
            "wait": lease.wait_ns / 1e6,
            "run": lease.run_ns / 1e6,
            "total": (time.monotonic_ns() - request.started_ns) / 1e6,
        }
        request.log |= {"model": self._info.name, "images": 1, "batch": lease.batch}
        answer = self._described(lease) | {"ms": {name: round(value, 3) for name, value in took.items()}}
        return Response(body=[json.dumps(answer, ensure_ascii=False).encode()])

    def _described(self, lease: Lease) -> dict[str, Any]:
        info, ask, scores = self._info, self._ask, lease.scores[0]  # [C]
        names, order = info.categories, protocol.ranked(scores)
        answer: dict[str, Any] = {
            "model": info.name,
            "labels": [
                {"name": names[c], "score": round(score, 6)}
                for c, score in protocol.above(info, scores, ask.threshold, ask.top_k)
            ],
            "scores": {names[c]: round(score, 6) for c, score in order},
            "thresholds": dict(zip(names, info.thresholds.tolist(), strict=True)),
        }
        if ask.attention:
            maps = {names[c]: np.round(lease.attention[0, c], 5).ravel().tolist() for c, _ in order[:MAPS]}
            answer["attention"] = {"height_width": list(info.geometry.map_size), "maps": maps}
        return answer

    def _asked(self, request: Request) -> Ask:
        parameters: dict[str, Any] = {}
        query = request.query
        if "threshold" in query:
            parameters["threshold"] = query["threshold"]
        if "top_k" in query:
            digits = query["top_k"][:9]  # more than that is as much too many, and costs nothing
            parameters["top_k"] = int(digits) if query["top_k"].isascii() and query["top_k"].isdigit() else -1
        outputs = [TensorSpec("scores")]
        if query.get("attention", "0") not in ("0", "", "false"):
            outputs.append(TensorSpec("attention"))
        return protocol.check(self._info, "", parameters, [TensorSpec("jpeg", "BYTES", (1,))], outputs)


def photo_of_form(content_type: str, body: bytes) -> bytes:
    """The first file of a multipart form. Raises RefusalError."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    head = b"Content-Type: " + content_type.encode("latin-1", "replace").replace(b"\r", b"").replace(b"\n", b"")
    message = parser.parsebytes(head + b"\r\n\r\n" + body)
    for part in message.iter_parts() if message.is_multipart() else ():
        if part.get_filename() is not None:
            payload = part.get_payload(decode=True)
            if isinstance(payload, bytes):
                return payload
    raise RefusalError("invalid", "the form holds no file (curl -F photo=@photo.jpg).")
