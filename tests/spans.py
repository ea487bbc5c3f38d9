"""A tiny OTLP/HTTP receiver: what a trace collector would get from the stack."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    """One span; ids are hexadecimal, times Unix nanoseconds, `parent` is empty for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent: str
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]


@dataclass
class Received:
    """Where to send spans, and those that have come."""

    endpoint: str
    spans: list[Span] = field(default_factory=list)

    def of_trace(self, trace_id: str) -> list[Span]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]


@contextmanager
def otlp_receiver() -> Iterator[Received]:
    """Takes spans on a free port until the end of the context; /v1/traces as protobuf or JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            as_json = self.headers["Content-Type"].startswith("application/json")
            received.spans.extend(spans_of_json(json.loads(body)) if as_json else spans_of_protobuf(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # several processes send at once; the library's 5 turns some of them away

    with Server(("127.0.0.1", 0), Handler) as server:
        received = Received(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield received
        server.shutdown()
        thread.join()


def spans_of_protobuf(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                values = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                yield Span(
                    service,
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.code == span.status.STATUS_CODE_ERROR,
                    values,
                )


def spans_of_json(body: dict[str, Any]) -> Iterator[Span]:
    """OTLP's JSON: ids in hexadecimal, 64-bit numbers as text or numbers."""
    for resource in body["resourceSpans"]:
        service = named(resource["resource"]["attributes"])["service.name"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    service,
                    span["name"],
                    span["traceId"].lower(),
                    span["spanId"].lower(),
                    span.get("parentSpanId", "").lower(),
                    int(span["startTimeUnixNano"]),
                    int(span["endTimeUnixNano"]),
                    span.get("status", {}).get("code") == 2,
                    named(span.get("attributes", ())),
                )


def named(attributes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}
