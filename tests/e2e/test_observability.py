"""What the running stack tells of itself: traces through gateway, Triton and signals, and log lines."""

from __future__ import annotations

import json
import secrets

import grpc
import pytest

from services.proto.candidates_pb2 import GetCandidatesRequest
from tests.conftest import eventually
from tests.spans import Span

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STAGES = ("fetch_signals", "embed_items", "generate", "retrieve")
SPANS_OF_A_REQUEST = 13
"""Two of the gateway, ten of Triton, one of the signal service."""
TRACES_TRIED = 4
CALLER = "00f067aa0ba902b7"
"""The caller's span."""


def asked(**changes) -> GetCandidatesRequest:
    fields = {"user_id": 11, "surface": "home", "budget": {"save": 1}, "num_candidates": 5}
    return GetCandidatesRequest(**{**fields, **changes})


def sampled() -> list[tuple[str, str]]:
    """What a caller sends that traces: a new trace, and that it is kept."""
    return [("traceparent", f"00-{secrets.token_hex(16)}-{CALLER}-01")]


def whole_trace(live) -> list[Span]:
    """All spans of one request. Exporters promise no delivery and may lose a batch, so a few requests are tried."""
    seen = []
    for _ in range(TRACES_TRIED):
        _, call = live.candidates.GetCandidates.with_call(asked(request_id="traced"), timeout=60, metadata=sampled())
        trace_id = dict(call.trailing_metadata())["pinrec-trace-id"]
        eventually(lambda trace=trace_id: len(live.received.of_trace(trace)) >= SPANS_OF_A_REQUEST, tries=300)
        seen.append(live.received.of_trace(trace_id))
        if len(seen[-1]) == SPANS_OF_A_REQUEST:
            return seen[-1]
    raise AssertionError([[(span.service, span.name) for span in one] for one in seen])


def test_a_trace_goes_through_gateway_triton_and_signals(live):
    spans = {(span.service, span.name): span for span in whole_trace(live)}
    served = spans["pinrec-gateway", "/pinrec.v1.CandidateService/GetCandidates"]
    called = spans["pinrec-gateway", "pinrec"]
    ensemble = spans["pinrec-triton", "pinrec"]
    stages = [spans["pinrec-triton", stage] for stage in STAGES]
    histories = spans["pinrec-signals", "GetHistories"]

    assert (served.parent, called.parent) == (CALLER, served.span_id)
    assert spans["pinrec-triton", "InferRequest"].parent == called.span_id
    assert {stage.parent for stage in stages} == {ensemble.span_id}
    assert histories.parent == called.span_id, "with or without Triton's own"
    assert served.attributes["pinrec.request_id"] == "traced"
    assert histories.attributes["pinrec.history_length"] > 0
    # One chain: each stage starts after the one before, all inside the gateway's call. (A span's end is taken after the
    # answer has left, which may be in other hands by then.)
    assert [stage.start_ns for stage in stages] == sorted(stage.start_ns for stage in stages)
    assert called.start_ns < stages[0].start_ns < stages[-1].start_ns < called.end_ns
    assert all(
        0 < called.attributes[f"pinrec.{stage}_us"] * 1_000 < called.end_ns - called.start_ns for stage in STAGES
    )


def test_a_refused_request_names_its_trace(live):
    with pytest.raises(grpc.RpcError) as refused:
        live.candidates.GetCandidates(asked(num_candidates=0), timeout=60, metadata=sampled())
    trace_id = dict(refused.value.trailing_metadata())["pinrec-trace-id"]
    assert eventually(lambda: live.received.of_trace(trace_id))
    [span] = live.received.of_trace(trace_id)
    assert (span.is_error, span.attributes["rpc.grpc.status_code"]) == (True, 3)


def test_every_process_logs_in_json(live):
    lines = [line.partition("| ")[2] for line in live.log.read_text().splitlines()]
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert {line["process"] for line in told} >= {"gateway", "signals", "items"}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in told)
