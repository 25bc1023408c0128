"""Spans that a real server sends, read by a collector of this test."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from serving import binary_request, serving, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.mark.slow
def test_an_inference_is_a_span_below_the_caller_s(bundle, images):
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="extra tracing")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="extra tracing")
    spans = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            request = service.ExportTraceServiceRequest.FromString(body)
            spans.extend(s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            """Nothing is printed."""

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with serving(bundle, "--no-grpc", "--workers", "1", "--threads", "1", "--otlp-endpoint", endpoint) as server:
            body, headers = binary_request(images[:1])
            headers |= {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            assert server.request("POST", "/v2/models/model/infer", body, headers)[0] == 200
            assert server.request("POST", "/v2/models/model/infer", b"{}", headers)[0] == 400
            assert server.stop() == 0
        until(lambda: len(spans) == 2)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in spans} == {PARENT}
    good, bad = sorted(spans, key=lambda span: span.status.code)
    assert good.end_time_unix_nano > good.start_time_unix_nano
    assert {a.key: a.value.int_value for a in good.attributes}["sdpl.images"] == 1
    assert "does not fit a body of 2 bytes" in bad.status.message
