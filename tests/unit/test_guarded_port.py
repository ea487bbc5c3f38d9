"""Tokens, limits and sizes at a real port: who gets in, and that nobody else learns anything."""

import asyncio
import re
from dataclasses import replace

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from pinrec_core.errors import InvalidConfig
from services.common.client import open_aio_channel
from services.common.limits import Limits
from services.common.server import GrpcServer, ServerOptions
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import BatchGetCandidatesRequest, GetCandidatesRequest
from services.proto.signals_pb2 import AppendEventsRequest, AppendEventsResponse, Event
from tests.guarded import SERVICES, Echo, ask, called


@pytest_asyncio.fixture
async def guarded(files, started):
    """Address of a server with a tokens file."""
    cert, key = files.issue("server")
    slow = Limits(requests_per_second=0.01, burst=3)
    tokens = files.token_file(ranking=(("read",), Limits()), log=(("append",), Limits()), slow=(("read",), slow))
    return await started(tls_cert=cert, tls_key=key, tokens=tokens)


async def test_a_token_goes_by_its_scope(files, guarded, client_has):
    for name, code in (("ranking", "OK"), ("log", "PERMISSION_DENIED")):
        client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / f"{name}.token")
        assert (await ask(guarded))[0] == code


async def test_a_clients_token_file_is_read_anew(files, guarded, client_has):
    mine = files.folder / "mine.token"
    mine.write_text(files.tokens["log"])
    client_has(CLIENT_CA=files.ca, TOKEN_FILE=mine)
    async with open_aio_channel(guarded) as channel:
        stub = candidates_pb2_grpc.CandidateServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="client log may not call this method: it needs scope read"):
            await stub.GetCandidates(GetCandidatesRequest())
        beside = files.folder / "beside"
        beside.write_text(files.tokens["ranking"])
        beside.replace(mine)
        assert await stub.GetCandidates(GetCandidatesRequest())
        mine.unlink()
        with pytest.raises(grpc.aio.AioRpcError, match="PINREC_TOKEN_FILE has value"):
            await stub.GetCandidates(GetCandidatesRequest())


METHODS = [
    "/pinrec.v1.CandidateService/GetCandidates",
    "/pinrec.v1.SignalService/AppendEvents",
    "/pinrec.v1.SignalService/AppendEventsStream",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/Watch",
    "/pinrec.v1.CandidateService/NoSuchMethod",
    "/no.such.Service/Method",
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["unary_unary", "stream_stream"])
@pytest.mark.parametrize("message", [b"", b"\xff\xff\xff", b"\0" * (9 << 20)])
async def test_who_has_no_token_learns_nothing(files, guarded, client_has, method, kind, message):
    """The same answer for what exists, what does not, what cannot be read and what is too large to be read."""
    client_has(CLIENT_CA=files.ca)
    answers, error = await asyncio.to_thread(called, guarded, kind, method, [message])
    assert (answers, error.code()) == ([], grpc.StatusCode.UNAUTHENTICATED)
    assert error.details() == "no known token; send one as metadata, authorization: Bearer TOKEN"
    assert list(error.trailing_metadata()) == []


async def test_the_log_has_a_refused_callers_address(files, guarded, client_has, caplog):
    client_has(CLIENT_CA=files.ca)
    await ask(guarded)
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.fullmatch(r"UNAUTHENTICATED: ipv[46]:\S+ asked for '/pinrec.v1.CandidateService/GetCandidates'", line)


async def test_a_look_at_health_needs_no_token(files, guarded, client_has):
    client_has(CLIENT_CA=files.ca)
    async with open_aio_channel(guarded) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_answers_who_has_a_token(files, guarded, client_has):
    client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / "ranking.token")
    async with open_aio_channel(guarded) as channel:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        [reply] = [reply async for reply in stub.ServerReflectionInfo(asked)]
    assert set(SERVICES) < {service.name for service in reply.list_services_response.service}


async def test_tools_that_ask_for_newer_reflection_are_told_to_take_the_older(files, guarded, client_has):
    client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / "ranking.token")
    method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    _, error = await asyncio.to_thread(called, guarded, "stream_stream", method, [b""])
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_limits_refuse_with_pushback_and_a_batch_counts_its_users(files, guarded, client_has):
    client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / "slow.token")
    async with open_aio_channel(guarded) as channel:
        stub = candidates_pb2_grpc.CandidateServiceStub(channel)
        await stub.GetCandidates(GetCandidatesRequest())
        await stub.BatchGetCandidates(BatchGetCandidatesRequest(requests=[GetCandidatesRequest()] * 2))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetCandidates(GetCandidatesRequest())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.value.details().startswith("the limit of this client is 0.01 requests per second; try again in ")
    assert dict(iter(refused.value.trailing_metadata())) == {"grpc-retry-pushback-ms": "-1"}


async def test_the_days_requests_end_a_stream(files, started, client_has):
    cert, key = files.issue("server")
    tokens = files.token_file(log=(("append",), Limits(requests_per_day=2)))
    address = await started(tls_cert=cert, tls_key=key, tokens=tokens)
    client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / "log.token")
    messages = [AppendEventsRequest(events=[Event()]).SerializeToString()] * 3
    method = "/pinrec.v1.SignalService/AppendEventsStream"
    answers, error = await asyncio.to_thread(called, address, "stream_stream", method, messages)
    assert [AppendEventsResponse.FromString(answer).acknowledged for answer in answers] == [1, 1]
    assert error.details().startswith("the limit of this client is 2 requests a day; try again in ")
    assert dict(error.trailing_metadata()) == {"grpc-retry-pushback-ms": "-1"}


def test_tokens_want_tls(files):
    options = ServerOptions("localhost:0", tokens=files.token_file(ranking=(("read",), Limits())))
    with pytest.raises(InvalidConfig, match="--tokens is set without --tls-cert: a token must not travel in the clear"):
        GrpcServer(SERVICES, options, CollectorRegistry())
    cert, key = files.issue("server")
    missing = replace(options, tls_cert=cert, tls_key=key, tokens=files.folder / "gone.toml")
    with pytest.raises(InvalidConfig, match=r"gone\.toml: not a tokens file"):
        GrpcServer(SERVICES, missing, CollectorRegistry())


# --- sizes, and nothing of it all ---


async def test_a_request_beyond_the_size_of_its_service_is_refused_unread(client_has):
    server = GrpcServer(SERVICES, ServerOptions("localhost:0"), CollectorRegistry(), max_request_bytes=1_000)
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Echo(), server.server)
    await server.start()
    async with open_aio_channel(f"localhost:{server.port}") as channel:
        stub = candidates_pb2_grpc.CandidateServiceStub(channel)
        assert await stub.GetCandidates(GetCandidatesRequest(request_id="r" * 900))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetCandidates(GetCandidatesRequest(request_id="r" * 1_100))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.GetCandidates(GetCandidatesRequest(), metadata=(("x-large", "x" * 20_000),))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.server.stop(0)


async def test_without_any_option_the_port_speaks_plainly_and_tells_no_schema(client_has):
    server = GrpcServer(SERVICES, ServerOptions("localhost:0"), CollectorRegistry())
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Echo(), server.server)
    await server.start()
    assert await ask(f"localhost:{server.port}") == ("OK", "r")
    answers, error = await asyncio.to_thread(called, f"localhost:{server.port}", "stream_stream", METHODS[3], [b""])
    assert (answers, error.code()) == ([], grpc.StatusCode.UNIMPLEMENTED)
    await server.server.stop(0)
