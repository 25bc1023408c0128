"""OpenTelemetry spans of inference requests, sent over OTLP; behind the extra `tracing`.

A span covers a request from its head to its answer and is a child of the caller's, which its `traceparent` names.
"""

import time
from collections.abc import Mapping
from typing import Any

from sdpl.server.refusal import RefusalError


class Tracer:
    """Makes spans when an endpoint was given; else nothing is loaded and nothing happens."""

    def __init__(self, endpoint: str | None):
        """endpoint: such as http://localhost:4318/v1/traces. Spans go out in a thread, in batches."""
        self._provider: Any = None
        if endpoint is None:
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(resource=Resource.create({"service.name": "sdpl-serve"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("sdpl.server")
        self._propagator = TraceContextTextMapPropagator()

    @property
    def on(self) -> bool:
        return self._provider is not None

    def record(
        self,
        transport: str,
        headers: Mapping[str, str],
        started_ns: int,
        refused: RefusalError | None,
        about: Mapping[str, Any],
    ) -> None:
        """Make the span of a request that is over. started_ns: of the monotonic clock."""
        if self._provider is None:
            return
        from opentelemetry.trace import SpanKind, Status, StatusCode

        now = time.time_ns()
        begin = now - (time.monotonic_ns() - started_ns)
        attributes = {"rpc.system": transport, **{f"sdpl.{name}": value for name, value in about.items()}}
        context = self._propagator.extract(dict(headers))
        span = self._tracer.start_span(
            "infer", context=context, kind=SpanKind.SERVER, start_time=begin, attributes=attributes
        )
        if refused is not None:
            span.set_attribute("error.type", refused.kind)
            span.set_status(Status(StatusCode.ERROR, str(refused)))
        span.end(now)

    def close(self) -> None:
        """Send what is waiting."""
        if self._provider is not None:
            self._provider.shutdown()
