"""`Tracing` on the OpenTelemetry SDK. Imported only where traces are on (`tracing.py`)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import grpc
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.logs import facts_of_call, note_call
from services.common.tracing import NO_SPAN, TRACE_ID_METADATA, UNTRACED, CallSpan, Metadata

_W3C = TraceContextTextMapPropagator()
_ATTRIBUTE_PREFIX = "pinrec."

CLOSE_S = 2.0


class OpenTelemetry:
    """Spans go to the exporter in batches, from a thread of the SDK's own."""

    def __init__(self, service: str) -> None:
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)  # each retry is a warning there
        resource = Resource.create({"service.name": f"pinrec-{service}"})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter()
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("pinrec")

    def serve(self, method: str, metadata: Metadata) -> AbstractContextManager[CallSpan]:
        """Span of a served call, under the caller's if it sent one; log lines get its trace_id."""
        if method.rpartition("/")[2] in UNTRACED:
            return NO_SPAN
        return self._serve(method, metadata)

    @contextmanager
    def _serve(self, method: str, metadata: Metadata) -> Iterator[CallSpan]:
        sent = {key: value for key, value in metadata if key in _W3C.fields and isinstance(value, str)}
        parent = _W3C.extract(sent, Context()) if sent else Context()
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        served = _OpenSpan(span)
        note_call(trace_id=served.trace_id)
        if not span.is_recording():  # the usual case does no more
            yield served
            return
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield served
            finally:
                served.note(**_own_facts())

    def call(self, name: str) -> AbstractContextManager[CallSpan]:
        """Span of a call to another process, where the call that is being served is sampled."""
        return self._call(name) if trace.get_current_span().is_recording() else NO_SPAN

    @contextmanager
    def _call(self, name: str) -> Iterator[CallSpan]:
        with self._tracer.start_as_current_span(name, kind=SpanKind.CLIENT, record_exception=False) as span:
            called = _OpenSpan(span)
            called.note(**_own_facts())
            yield called

    def record(self, name: str, trace_parent: str, start_ns: int, **attributes: str | float) -> None:
        """Span from `start_ns` (Unix nanoseconds) until now, under a caller's ("" = it is not sampled: none)."""
        if trace_parent:
            parent = _W3C.extract({"traceparent": trace_parent}, Context())
            span = self._tracer.start_span(name, parent, SpanKind.SERVER, start_time=start_ns)
            _OpenSpan(span).note(**attributes)
            span.end()

    def close(self) -> None:
        """Send what has not been sent, for `CLOSE_S` at most: a collector that is away must not hold up a drain."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        if closing.is_alive():
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # no more retries


class _OpenSpan:
    def __init__(self, span: Span) -> None:
        self._span = span
        self.trace_id = format_trace_id(span.get_span_context().trace_id)

    @property
    def headers(self) -> Mapping[str, str]:
        """The span as W3C writes it."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """The trace's id."""
        return ((TRACE_ID_METADATA, self.trace_id),)

    def note(self, **attributes: str | float) -> None:
        """Attributes, which are named `pinrec.` and this."""
        self._span.set_attributes({_ATTRIBUTE_PREFIX + name: value for name, value in attributes.items()})

    def ended(self, code: grpc.StatusCode) -> None:
        """How the call ends; all but OK mark the span as an error."""
        self._span.set_attribute("rpc.grpc.status_code", int(code.value[0]))
        if code is not grpc.StatusCode.OK:
            self._span.set_status(Status(StatusCode.ERROR, code.name))


def _own_facts() -> dict[str, str]:
    """What is known of the call beside its trace's id, which a span has anyway."""
    return {name: value for name, value in facts_of_call().items() if name != "trace_id"}
