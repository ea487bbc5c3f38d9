import logging
import re
import socket
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from pinrec_core.errors import NotSetUp, Unavailable
from services.common.logs import facts_of_call, note_call
from services.common.server import GrpcServer, ServerOptions
from services.common.tracing import NO_TRACING, open_tracing
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from tests.spans import otlp_receiver

SERVICE = "pinrec.v1.CandidateService"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Servicer(candidates_pb2_grpc.CandidateServiceServicer):
    """Calls another process, then answers, or fails for user 13."""

    def __init__(self, tracing):
        self.tracing = tracing
        self.sent = []

    async def GetCandidates(self, request, context):  # noqa: N802
        note_call(request_id=request.request_id)
        with self.tracing.call("ensemble") as span:
            self.sent.append(span.headers)
            span.note(generate_us=1_500)
        if request.user_id == 13:
            raise Unavailable("the serving stages do not answer")
        return GetCandidatesResponse(request_id=str(facts_of_call().get("trace_id")))


@pytest.fixture
def received(monkeypatch):
    with otlp_receiver() as receiver:
        monkeypatch.setenv(ENDPOINT, receiver.endpoint)
        yield receiver


async def ask(tracing, user_id=1, **metadata):
    """One call to a server with `tracing`, which then stops: reply or code, trailers, and what the servicer sent on."""
    server = GrpcServer([SERVICE], ServerOptions("localhost:0"), CollectorRegistry(), tracing)
    servicer = Servicer(tracing)
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(servicer, server.server)
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as channel:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        request = GetCandidatesRequest(user_id=user_id, request_id="r7")
        call = candidates_pb2_grpc.CandidateServiceStub(channel).GetCandidates(request, metadata=[*metadata.items()])
        try:
            answer = (await call).request_id
        except grpc.aio.AioRpcError as error:
            answer = error.code().name
        trailers = dict(tuple(await call.trailing_metadata()))
    await server.drain()
    return answer, trailers, servicer.sent


async def test_spans_of_a_call_and_of_the_call_it_makes(received):
    trace_id, trailers, sent = await ask(open_tracing("gateway"))
    assert trailers == {"pinrec-trace-id": trace_id}
    assert re.fullmatch("[0-9a-f]{32}", trace_id)
    made, served = sorted(received.spans, key=lambda span: span.end_ns)
    assert (served.service, served.name) == ("pinrec-gateway", f"/{SERVICE}/GetCandidates")
    assert (served.trace_id, served.parent, served.is_error) == (trace_id, "", False)
    assert served.attributes == {"pinrec.request_id": "r7", "rpc.grpc.status_code": 0}
    assert (made.name, made.trace_id, made.parent) == ("ensemble", trace_id, served.span_id)
    assert made.attributes == {"pinrec.request_id": "r7", "pinrec.generate_us": 1_500}
    [headers] = sent
    assert re.fullmatch(f"00-{trace_id}-{made.span_id}-0[13]", headers["traceparent"])  # sampled; 2 = a random id


async def test_a_call_belongs_to_the_trace_of_its_caller(received):
    trace_id, *_ = await ask(open_tracing("gateway"), traceparent=f"00-{TRACE}-{SPAN}-01")
    assert trace_id == TRACE
    assert {span.parent for span in received.of_trace(TRACE) if span.name != "ensemble"} == {SPAN}


async def test_what_is_not_sampled_has_a_trace_id_and_no_spans(received):
    trace_id, trailers, sent = await ask(open_tracing("gateway"), traceparent=f"00-{TRACE}-{SPAN}-00")
    assert trace_id == trailers["pinrec-trace-id"] == TRACE
    assert (received.spans, sent) == ([], [None])


async def test_a_failed_call_is_an_error_with_its_line(received, caplog):
    code, trailers, _ = await ask(open_tracing("gateway"), user_id=13)
    [served] = [span for span in received.spans if span.name != "ensemble"]
    assert (code, served.is_error, served.attributes["rpc.grpc.status_code"]) == ("UNAVAILABLE", True, 14)
    assert trailers == {"pinrec-trace-id": served.trace_id}
    [line] = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert re.fullmatch(r"GetCandidates ended as UNAVAILABLE after [0-9.]+ ms: the serving stages do not answer", line)


async def test_without_an_endpoint_nothing_is_told(monkeypatch):
    monkeypatch.delenv(ENDPOINT, raising=False)
    assert open_tracing("gateway") is NO_TRACING
    assert await ask(NO_TRACING) == ("None", {}, [None])


def test_a_span_of_the_past_and_none_for_a_caller_that_is_not_sampled(received):
    tracing = open_tracing("signals")
    tracing.record("GetHistories", f"00-{TRACE}-{SPAN}-01", start_ns=1_000, batch_size=3)
    tracing.record("GetHistories", "", start_ns=1_000, batch_size=3)
    tracing.record("GetHistories", f"00-{TRACE}-{SPAN}-00", start_ns=1_000, batch_size=3)
    tracing.close()
    [span] = received.spans
    assert (span.service, span.trace_id, span.parent, span.start_ns) == ("pinrec-signals", TRACE, SPAN, 1_000)
    assert span.attributes == {"pinrec.batch_size": 3}


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr("services.common.open_telemetry.CLOSE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        trace_id, *_ = await ask(open_tracing("gateway"))  # drains
    assert re.fullmatch("[0-9a-f]{32}", trace_id)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "services.common.open_telemetry", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(
        NotSetUp, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set, but opentelemetry is missing: pip install"
    ):
        open_tracing("gateway", {ENDPOINT: "http://localhost:4318"})
