"""Traces with OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT says where spans go; else nothing of it is imported.

Everything else is the SDK's own: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_*, OTEL_EXPORTER_OTLP_HEADERS.
A call that is not sampled has a trace id all the same, and costs little more than that.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import grpc

from pinrec_core.errors import NotSetUp

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

TRACE_ID_METADATA = "pinrec-trace-id"
"""Trailing metadata of each answered call: the trace's id, 32 hexadecimal digits."""

UNTRACED = frozenset({"Check", "Watch", "GetChanges", "GetHistories"})
"""Methods without a span of their own: probes, a call that is held until there is news, and one that answers several
requests, each of which belongs to another trace (`Tracing.record`)."""

Metadata = Sequence[tuple[str, str | bytes]]


class CallSpan(Protocol):
    """The span of a call, while it runs."""

    @property
    def headers(self) -> Mapping[str, str] | None:
        """What a call to another process carries, so that its spans belong to this one; None for none."""
        ...

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Trailing metadata that tells the caller where to look."""
        ...

    def note(self, **attributes: str | float) -> None:
        """Attributes, which are named `pinrec.` and this."""
        ...

    def ended(self, code: grpc.StatusCode) -> None:
        """How the call ends; all but OK mark the span as an error."""
        ...


class Tracing(Protocol):
    """What a process tells of the calls that it serves and makes."""

    def serve(self, method: str, metadata: Metadata) -> AbstractContextManager[CallSpan]:
        """Span of a served call, under the caller's if it sent one; log lines get its trace_id."""
        ...

    def call(self, name: str) -> AbstractContextManager[CallSpan]:
        """Span of a call to another process, where the call that is being served is sampled."""
        ...

    def record(self, name: str, trace_parent: str, start_ns: int, **attributes: str | float) -> None:
        """Span from `start_ns` (Unix nanoseconds) until now, under a caller's ("" = it is not sampled: none)."""
        ...

    def close(self) -> None:
        """Send what has not been sent."""
        ...


def open_tracing(service: str, environ: Mapping[str, str] = os.environ) -> Tracing:
    """Tracing of the process `service`, off unless `ENDPOINT` is set. Raises NotSetUp if its packages are missing."""
    if not environ.get(ENDPOINT):
        return NO_TRACING
    try:
        from services.common.open_telemetry import OpenTelemetry
    except ModuleNotFoundError as error:
        raise NotSetUp(f"{ENDPOINT} is set, but {error.name} is missing: pip install 'pinrec[tracing]'") from error
    return OpenTelemetry(service)


class _NoSpan:
    headers: Mapping[str, str] | None = None
    trailers: tuple[tuple[str, str], ...] = ()

    def note(self, **attributes: str | float) -> None:
        """Nobody listens."""

    def ended(self, code: grpc.StatusCode) -> None:
        """Nobody listens."""


NO_SPAN: AbstractContextManager[CallSpan] = nullcontext(_NoSpan())
"""Entered as often as one likes."""


class NoTracing:
    """Tells nothing and costs nothing."""

    def serve(self, method: str, metadata: Metadata) -> AbstractContextManager[CallSpan]:
        """No span."""
        return NO_SPAN

    def call(self, name: str) -> AbstractContextManager[CallSpan]:
        """No span."""
        return NO_SPAN

    def record(self, name: str, trace_parent: str, start_ns: int, **attributes: str | float) -> None:
        """No span."""

    def close(self) -> None:
        """Nothing to send."""


NO_TRACING = NoTracing()
