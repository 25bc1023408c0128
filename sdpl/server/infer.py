"""An inference over HTTP: JSON, and behind it the bytes of tensors, as KServe's binary extension has them."""

from sdpl.server.app import App
from sdpl.server.exchange import Request, Response
from sdpl.server.json_form import from_json, parse_json, to_json
from sdpl.server.lease import Lease
from sdpl.server.protocol import Ask, encoded_images, fill
from sdpl.server.refusal import RefusalError

JSON_LENGTH = "inference-header-content-length"


class Infer:
    """An inference request. Its JSON is read first; then the bytes of pixels go straight into the engine's slots."""

    def __init__(self, app: App, request: Request, name: str, version: str):
        self._app, self._request, self._names = app, request, (name, version)
        self._link, self._info = app.pick(name, version)
        self._lease: Lease | None = None
        self._ask: Ask | None = None
        self._raw: bytearray | None = None
        self._link.admit(self._info, 1)
        given, limit = request.headers.get(JSON_LENGTH), app.settings.max_json
        if given is None:
            self._json_size = request.length
        else:
            if not (given.isascii() and given.isdigit()) or len(given) > 18 or int(given) > request.length:
                raise RefusalError(
                    "invalid", f"{JSON_LENGTH} {given[:40]!r} does not fit a body of {request.length} bytes."
                )
            self._json_size = int(given)
        if self._json_size > limit:
            raise RefusalError("too_large", f"JSON of {self._json_size} bytes (limit {limit}): send binary data.")
        if self._json_size == 0:
            raise RefusalError("invalid", "the body is empty; expected an inference request in JSON.")
        self._json = bytearray(self._json_size)
        self.memory = memoryview(self._json)

    def filled(self) -> None:
        if self._ask is not None:
            return
        self._link, self._info = self._app.pick(*self._names)  # again: the model may have been swapped meanwhile
        self._ask = ask = from_json(self._info, parse_json(self._json))
        self._json = bytearray()
        rest = self._request.length - self._json_size
        size = ask.source.binary_size
        if size is None and rest:
            raise RefusalError("invalid", f"{rest} bytes follow the JSON, but no input has a binary_data_size.")
        if size is not None and size != rest:
            raise RefusalError("invalid", f"binary_data_size says {size} bytes, {rest} follow the JSON.")
        if size is None and ask.source.data is None:
            raise RefusalError("invalid", f"input {ask.source.name!r} has neither data nor binary_data_size.")
        expected = ask.rows * self._info.geometry.image_bytes
        if size is not None and not ask.encoded and size != expected:
            raise RefusalError("invalid", f"input 'image': its shape needs {expected} bytes, got {size}.")
        self._lease = self._link.lease(self._info, ask.rows)
        if size is not None and ask.encoded:
            self._raw = bytearray(rest)
            self.memory = memoryview(self._raw)
        elif size is not None:
            self.memory = self._lease.memory

    async def answer(self) -> Response:
        ask, lease, app = self._ask, self._lease, self._app
        assert ask is not None
        assert lease is not None
        if ask.encoded:
            await app.decode(lease, encoded_images(ask.source, ask.rows, self._raw))
        elif ask.source.data is not None:
            fill(lease, ask.source.data)
        await app.run(lease, ask, self._request.started_ns)
        text, raw = to_json(ask, lease)
        self._request.log |= lease.about()
        response = Response(body=[text, *raw])
        if raw:
            response.content_type = "application/octet-stream"
            response.headers["Inference-Header-Content-Length"] = str(len(text))
        return response

    def abandon(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()
