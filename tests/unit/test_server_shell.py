"""The shell around every gRPC process: health, reflection, errors at the edge, metrics, and the process itself."""

import asyncio
import re
import signal
import subprocess
import sys
import urllib.request
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client import CollectorRegistry

from pinrec_core.errors import DeadlineExceeded, InvalidConfig, InvalidRequest, Overloaded
from services.common.metrics import RpcMetrics
from services.common.server import LIVE, EdgeInterceptor, GrpcServer, ServerOptions
from services.proto import candidates_pb2_grpc, signals_pb2_grpc
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.signals_pb2 import AppendEventsRequest, AppendEventsResponse, Event
from tests.ports import free_port

SERVICE = "pinrec.v1.CandidateService"


class Moody(candidates_pb2_grpc.CandidateServiceServicer):
    """Fails as its request id says."""

    async def GetCandidates(self, request, context):  # noqa: N802
        if request.request_id == "overloaded":
            raise Overloaded("full")
        if request.request_id == "bug":
            raise KeyError("/secret/path")
        if request.request_id == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "nobody")
        return GetCandidatesResponse(request_id=request.request_id)


@pytest_asyncio.fixture
async def shell():
    registry = CollectorRegistry()
    server = GrpcServer([SERVICE], ServerOptions("localhost:0"), registry)
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Moody(), server.server)
    await server.start()
    yield server, registry
    await server.drain()


@pytest_asyncio.fixture
async def channel(shell):
    async with grpc.aio.insecure_channel(f"localhost:{shell[0].port}") as opened:
        yield opened


@pytest.mark.parametrize(
    ("mood", "code", "details"),
    [
        ("overloaded", "RESOURCE_EXHAUSTED", "full"),
        ("bug", "INTERNAL", "internal error"),
        ("abort", "NOT_FOUND", "nobody"),
    ],
)
async def test_what_a_handler_raises_becomes_a_status_and_a_metric(shell, channel, mood, code, details):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await candidates_pb2_grpc.CandidateServiceStub(channel).GetCandidates(GetCandidatesRequest(request_id=mood))
    assert (raised.value.code().name, raised.value.details()) == (code, details)
    labels = {"method": "GetCandidates", "code": code}
    while shell[1].get_sample_value("pinrec_rpc_seconds_count", labels) is None:
        await asyncio.sleep(0.001)  # a client may have its status before the server has counted it
    assert shell[1].get_sample_value("pinrec_rpc_seconds_count", labels) == 1


async def test_answers_pass_and_are_timed(shell, channel):
    reply = await candidates_pb2_grpc.CandidateServiceStub(channel).GetCandidates(GetCandidatesRequest(request_id="r"))
    assert reply.request_id == "r"
    labels = {"method": "GetCandidates", "code": "OK"}
    assert shell[1].get_sample_value("pinrec_rpc_seconds_count", labels) == 1


class Counting(signals_pb2_grpc.SignalServiceServicer):
    """Answers each message of a stream with the number of its events; a stream of its own may fail."""

    async def AppendEventsStream(self, requests, context):  # noqa: N802
        async for request in requests:
            if not request.events:
                raise InvalidRequest("events", "0 events", "1 or more")
            yield AppendEventsResponse(acknowledged=len(request.events))


@pytest_asyncio.fixture
async def streams():
    registry = CollectorRegistry()
    server = GrpcServer(["pinrec.v1.SignalService"], ServerOptions("localhost:0"), registry)
    signals_pb2_grpc.add_SignalServiceServicer_to_server(Counting(), server.server)
    await server.start()
    async with grpc.aio.insecure_channel(f"localhost:{server.port}") as opened:
        yield opened, registry
    await server.drain()


async def streamed(opened, messages):
    """Answers of a stream, and how it ended: as the server says, if the message that ends it is the last one.

    (A client that still writes when the server has ended the call may find an INTERNAL of its own library instead.)
    """
    call = opened.stream_stream("/pinrec.v1.SignalService/AppendEventsStream")(iter(messages))
    answers = []
    try:
        async for answer in call:
            answers.append(AppendEventsResponse.FromString(answer).acknowledged)
    except grpc.aio.AioRpcError as error:
        return answers, error.code().name, error.details()
    return answers, "OK", ""


def counted(*numbers):
    return [AppendEventsRequest(events=[Event()] * number).SerializeToString() for number in numbers]


@pytest.mark.parametrize(
    ("messages", "answers", "code", "details"),
    [
        (counted(1, 3), [1, 3], "OK", ""),
        (counted(2, 0), [2], "INVALID_ARGUMENT", "events has value '0 events'; allowed: 1 or more"),
        (
            [*counted(2), b"\xff\xff"],
            [2],
            "INVALID_ARGUMENT",
            "message has value '2 bytes'; allowed: the request of this method, encoded",
        ),
    ],
)
async def test_a_stream_answers_in_order_and_fails_by_the_same_table(streams, messages, answers, code, details):
    opened, registry = streams
    assert await streamed(opened, messages) == (answers, code, details)
    labels = {"method": "AppendEventsStream", "code": code}
    while registry.get_sample_value("pinrec_rpc_streams_total", labels) is None:
        await asyncio.sleep(0.001)
    assert registry.get_sample_value("pinrec_rpc_streams_total", labels) == 1


async def test_bytes_that_are_no_request_are_the_callers_error(channel):
    call = channel.unary_unary(f"/{SERVICE}/GetCandidates")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call(b"\xff\xff\xff")
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "message has value '3 bytes'; allowed: the request of this method, encoded"


class Gone:
    """The context of a call whose client has hung up, as gRPC answers in rare races: it cannot be told anything."""

    def invocation_metadata(self):
        return ()

    async def abort(self, code, details):
        raise grpc.aio.InternalError("Failed 'execute_batch'")


async def test_an_error_for_a_client_that_is_gone_is_counted_and_ends_the_call_quietly():
    async def late(request, context):
        raise DeadlineExceeded("too late")

    async def continuation(details):
        return grpc.unary_unary_rpc_method_handler(late, GetCandidatesRequest.FromString)

    registry = CollectorRegistry()
    details = SimpleNamespace(method=f"/{SERVICE}/GetCandidates")
    guarded = await EdgeInterceptor(RpcMetrics(registry)).intercept_service(continuation, details)
    with pytest.raises(asyncio.CancelledError):
        await guarded.unary_unary(b"", Gone())
    labels = {"method": "GetCandidates", "code": "DEADLINE_EXCEEDED"}
    assert registry.get_sample_value("pinrec_rpc_seconds_count", labels) == 1


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_set_serving(shell, channel, service):
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.NOT_SERVING
    await shell[0].set_serving(True)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_the_process_is_live_before_it_is_ready(shell, channel):
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=LIVE)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING
    await shell[0].set_serving(False)
    assert (await stub.Check(request)).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_an_error_not_a_shared_one(shell):
    second = GrpcServer([SERVICE], ServerOptions(f"localhost:{shell[0].port}"), CollectorRegistry())
    with pytest.raises(InvalidConfig, match=r"--listen has value 'localhost:[0-9]+'; allowed: a free port"):
        await second.start()
    await second.server.stop(0)


@pytest.fixture
def gateway_process(tmp_path):
    """`python -m services.gateway.server` with nothing behind it: its process, gRPC port and metrics port."""
    command = [sys.executable, "-m", "services.gateway.server", "--releases", tmp_path, "--triton", "localhost:1"]
    metrics_port = free_port("localhost")
    command += ["--listen", "localhost:0", "--metrics-port", str(metrics_port), "--reflection"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = int(re.search(r"listening on port (\d+)", process.stderr.readline())[1])
        yield process, port, metrics_port
        process.kill()


def test_the_gateway_process_waits_unready_and_ends_cleanly_on_sigterm(gateway_process):
    process, port, metrics_port = gateway_process
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        status = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
    with urllib.request.urlopen(f"http://localhost:{metrics_port}/metrics") as page:
        metrics = page.read().decode()
    assert "pinrec_gateway_ready 0.0" in metrics
    assert "process_cpu_seconds_total" in metrics
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in process.stderr.read()


async def test_metrics_are_served_on_the_address_of_the_calls_only(monkeypatch):
    """No port of a process that listens on the loopback may be open to the network."""
    bound = []
    monkeypatch.setattr("services.common.server.start_http_server", lambda port, addr, registry: bound.append(addr))
    for listen, host in (("127.0.0.1:0", ""), ("[::1]:0", ""), ("0.0.0.0:0", "127.0.0.1")):
        shell = GrpcServer([SERVICE], ServerOptions(listen, metrics_port=9, metrics_host=host), CollectorRegistry())
        monkeypatch.setattr(shell.server, "add_insecure_port", lambda address: 1)
        await shell.start()
        await shell.server.stop(0)
    assert bound == ["127.0.0.1", "::1", "127.0.0.1"]
