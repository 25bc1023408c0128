"""The protocol over gRPC."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from sdpl.server import description, protocol
from sdpl.server.app import App, retry_after
from sdpl.server.lease import Lease, ModelInfo
from sdpl.server.messages import HEALTH, SERVICE, message, methods, split
from sdpl.server.protocol import Ask, TensorSpec
from sdpl.server.refusal import RefusalError

Request = message("ModelInferRequest")
Response = message("ModelInferResponse")
Health = methods(HEALTH)["Check"][1]
HEADROOM = 1 << 16  # of a message beside its tensors
OPEN = ("ServerLive", "ServerReady", "ModelReady", "Check")  # need no token
CONTENTS = ("uint_contents", "bytes_contents")  # those that an input of ours may use


async def start(app: App, calls: int) -> grpc.aio.Server:
    """A server on the settings' port, which front ends share, started. calls: at most so many at once."""
    settings = app.settings
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_body + HEADROOM),
            ("grpc.max_metadata_size", 16_384),
            ("grpc.max_connection_idle_ms", int(settings.idle_timeout_s * 1000)),
        ],
        maximum_concurrent_rpcs=calls,
    )
    service = Service(app)
    for of in (SERVICE, HEALTH):
        handlers = {}
        for name, (request, response) in methods(of).items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                service.handler(name),
                request_deserializer=None if name == "ModelInfer" else request.FromString,
                response_serializer=response.SerializeToString,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(of, handlers),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    if settings.tls_certificate is None or settings.tls_key is None:
        server.add_insecure_port(address)
    else:
        pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_certificate).read_bytes())
        server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    await server.start()
    return server


class Service:
    """The methods. Each takes a request and the call's context and returns a response, or raises RefusalError."""

    def __init__(self, app: App):
        self._app = app

    def handler(self, name: str) -> Callable[[Any, Any], Awaitable[Any]]:
        """A method with what all have alike: the token, and refusals as status codes."""
        method = getattr(self, name)

        async def handle(request: Any, context: Any) -> Any:
            try:
                if name not in OPEN and self._app.settings.token is not None:
                    self._app.authorize(dict(context.invocation_metadata()).get("authorization"))
                return await method(request, context)
            except RefusalError as refused:
                wait = retry_after(refused)
                code = getattr(grpc.StatusCode, refused.reason.grpc)
                await context.abort(code, str(refused), (("retry-after", wait),) if wait else ())

        return handle

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802, the protocol's names
        return message("ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerReadyResponse")(ready=self._app.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ModelReadyResponse")(ready=self._is_ready(request.name, request.version))

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """gRPC's own health check, of the server or of the model that is named."""
        of_server = request.service in ("", SERVICE)
        ready = self._app.ready if of_server else self._is_ready(request.service, "")
        return Health(status="SERVING" if ready else "NOT_SERVING")

    def _is_ready(self, name: str, version: str) -> bool:
        """Raises RefusalError for a model that is not known."""
        try:
            self._app.model(name, version)
        except RefusalError as refused:
            if refused.kind != "unavailable":
                raise
            return False
        return True

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return message("ServerMetadataResponse")(**description.server_metadata(self._app.settings.allow_repository))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        about = description.metadata(self._app.model(request.name, request.version))
        return ParseDict(about, message("ModelMetadataResponse")(), ignore_unknown_fields=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        about = description.config(self._app.model(request.name, request.version))
        return ParseDict({"config": about}, message("ModelConfigResponse")())

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = [self._app.model(request.name, request.version).name] if request.name else self._app.names
        about = {"model_stats": [self._app.statistics(name) for name in names]}
        return ParseDict(about, message("ModelStatisticsResponse")())

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        states = [state for state in self._app.states() if state["state"] == "READY" or not request.ready]
        return ParseDict({"models": states}, message("RepositoryIndexResponse")())

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._app.change(request.model_name, "load")
        return message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._app.change(request.model_name, "unload")
        return message("RepositoryModelUnloadResponse")()

    async def ModelInfer(self, data: bytes, context: Any) -> Any:  # noqa: N802
        started = time.monotonic_ns()
        refused: RefusalError | None = None
        info: ModelInfo | None = None
        about: dict[str, Any] = {}
        try:
            head, raw = split(data)
            try:
                request = Request.FromString(head)
            except DecodeError:
                raise RefusalError("invalid", "the message is malformed.") from None
            link, info = self._app.pick(request.model_name, request.model_version)
            ask = read(info, request, raw, context.time_remaining())
            lease = link.lease(info, ask.rows)
            try:
                await self._score(lease, ask, raw, started)
                about = lease.about()
                return respond(ask, lease)
            finally:
                lease.release()
        except RefusalError as error:
            refused = error
            raise
        except asyncio.CancelledError:
            refused = RefusalError("cancelled", "the caller went away")
            raise
        finally:
            if info is not None:
                self._app.count(info, "grpc", len(data), started, refused)
                if self._app.tracer.on:
                    headers = dict(context.invocation_metadata() or ())
                    self._app.tracer.record("grpc", headers, started, refused, about)
            if self._app.log.on:
                self._log(context, len(data), started, refused, about)

    async def _score(self, lease: Lease, ask: Ask, raw: Sequence[memoryview], started: int) -> None:
        if ask.encoded:
            await self._app.decode(lease, protocol.encoded_images(ask.source, ask.rows, raw[0] if raw else None))
        elif raw:
            lease.memory[:] = raw[0]
        else:
            protocol.fill(lease, ask.source.data)
        await self._app.run(lease, ask, started)

    def _log(self, context: Any, size: int, started: int, refused: RefusalError | None, about: dict[str, Any]) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self._app.log.write(
            transport="grpc",
            peer=context.peer(),
            method="ModelInfer",
            status=refused.reason.grpc if refused else "OK",
            received=size,
            ms=round((time.monotonic_ns() - started) / 1e6, 3),
            id=metadata.get("x-request-id"),
            trace=metadata.get("traceparent"),
            error=str(refused) if refused else None,
            **about,
        )


def read(info: ModelInfo, request: Any, raw: Sequence[memoryview], remaining_s: float | None) -> Ask:
    """What a request asks for. remaining_s: until the caller's deadline. Raises RefusalError."""
    if raw and len(raw) != len(request.inputs):
        raise RefusalError("invalid", f"{len(request.inputs)} inputs, but {len(raw)} raw_input_contents.")
    inputs = [_input(tensor, bool(raw)) for tensor in request.inputs]
    outputs = [TensorSpec(o.name, parameters=_parameters(o.parameters), binary=True) for o in request.outputs]
    parameters = {"binary_data_output": True, **_parameters(request.parameters)}
    if remaining_s is not None:
        parameters["timeout"] = min(int(parameters.get("timeout") or 1 << 61), max(1, int(remaining_s * 1e6)))
    ask = protocol.check(info, request.id, parameters, inputs, outputs)
    expected = ask.rows * info.geometry.image_bytes
    if raw and not ask.encoded and len(raw[0]) != expected:
        raise RefusalError("invalid", f"input 'image': its shape needs {expected} bytes, got {len(raw[0])}.")
    return ask


def respond(ask: Ask, lease: Lease) -> Any:
    info = lease.hold.info
    response = Response(model_name=info.name, model_version=info.version, id=ask.id)
    for spec, datatype, values in protocol.results(ask, lease):
        response.outputs.add(name=spec.name, datatype=datatype, shape=values.shape)
        response.raw_output_contents.append(protocol.to_bytes(values))
    return response


def _input(tensor: Any, is_raw: bool) -> TensorSpec:
    data: Any = None
    if not is_raw:
        used = [field.name for field, _ in tensor.contents.ListFields()]
        wanted = CONTENTS[tensor.datatype == "BYTES"]
        if used != [wanted]:
            raise RefusalError("invalid", f"input {tensor.name!r}: its values must be raw, or in {wanted}.")
        values = getattr(tensor.contents, wanted)
        data = list(values) if wanted == "bytes_contents" else np.fromiter(values, np.uint32, len(values))
    return TensorSpec(tensor.name, tensor.datatype, tuple(tensor.shape), _parameters(tensor.parameters), data)


def _parameters(given: Any) -> dict[str, Any]:
    return {name: getattr(value, value.WhichOneof("parameter_choice") or "bool_param") for name, value in given.items()}
