"""TLS, mutual TLS, tokens and limits at a real port, with real certificates."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from pinrec_core.errors import InvalidConfig
from pinrec_core.serving.triton_tls import triton_client_tls
from services.common.client import channel_credentials, connect, open_aio_channel, open_channel
from services.common.limits import Limits
from services.common.server import GrpcServer, ServerOptions
from services.common.tls import server_credentials
from services.common.tokens import Client, digest_of, new_token, write_clients
from services.proto import candidates_pb2_grpc, signals_pb2_grpc
from services.proto.candidates_pb2 import (
    BatchGetCandidatesRequest,
    BatchGetCandidatesResponse,
    GetCandidatesRequest,
    GetCandidatesResponse,
)
from services.proto.signals_pb2 import AppendEventsRequest, AppendEventsResponse, Event

SERVICES = ("pinrec.v1.CandidateService", "pinrec.v1.SignalService")
VARIABLES = ("PINREC_CLIENT_CA", "PINREC_CLIENT_CERT", "PINREC_CLIENT_KEY", "PINREC_TOKEN_FILE")


class Echo(candidates_pb2_grpc.CandidateServiceServicer):
    """Answers everybody who gets this far."""

    async def GetCandidates(self, request, context):  # noqa: N802
        return GetCandidatesResponse(request_id=request.request_id)

    async def BatchGetCandidates(self, request, context):  # noqa: N802
        return BatchGetCandidatesResponse()


class Counting(signals_pb2_grpc.SignalServiceServicer):
    """Answers each message of a stream with the number of its events."""

    async def AppendEventsStream(self, requests, context):  # noqa: N802
        async for request in requests:
            yield AppendEventsResponse(acknowledged=len(request.events))


class Files:
    """Certificates and tokens of a stack on localhost; `ours` signs servers and clients, `theirs` is nobody's."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ours, self.theirs = trustme.CA(), trustme.CA()
        self.ca = folder / "ca.pem"
        self.ours.cert_pem.write_to_path(self.ca)
        self.tokens = {}

    def issue(self, name, authority=None):
        """Paths of a new certificate for localhost and of its key."""
        made = (authority or self.ours).issue_cert("localhost", "127.0.0.1")
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return cert, key

    def token_file(self, **clients):
        """The tokens file; the tokens themselves are in `tokens`."""
        made = {}
        for name, (scopes, limits) in clients.items():
            token = self.tokens.setdefault(name, new_token())
            (self.folder / f"{name}.token").write_text(token + "\n")
            made[name] = Client(name, scopes, (digest_of(token),), limits)
        write_clients(self.folder / "tokens.toml", made)
        return self.folder / "tokens.toml"


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@pytest_asyncio.fixture
async def started():
    """Starts servers by their options and stops them."""
    servers = []

    async def start(**options):
        server = GrpcServer(SERVICES, ServerOptions("localhost:0", reflection=True, **options), CollectorRegistry())
        candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Echo(), server.server)
        signals_pb2_grpc.add_SignalServiceServicer_to_server(Counting(), server.server)
        await server.start()
        await server.set_serving(True)
        servers.append(server)
        return f"localhost:{server.port}"

    yield start
    for server in servers:
        await server.server.stop(0)


@pytest.fixture
def client_has(monkeypatch):
    """Sets what a client process has in its environment, and nothing else of it."""

    def have(**files):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, path in files.items():
            monkeypatch.setenv(f"PINREC_{name}", str(path))

    have()
    return have


async def ask(address):
    """OK and the echo, or the code of the failure and its words."""
    async with open_aio_channel(address) as channel:
        try:
            stub = candidates_pb2_grpc.CandidateServiceStub(channel)
            reply = await stub.GetCandidates(GetCandidatesRequest(request_id="r"), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
    return "OK", reply.request_id


# --- TLS ---


async def test_a_certificate_makes_the_port_speak_tls_only(files, started, client_has):
    cert, key = files.issue("server")
    address = await started(tls_cert=cert, tls_key=key)
    assert (await ask(address))[0] == "UNAVAILABLE", "without TLS"
    client_has(CLIENT_CA=files.ca)
    assert await ask(address) == ("OK", "r")
    files.theirs.cert_pem.write_to_path(files.ca)
    assert (await ask(address))[0] == "UNAVAILABLE", "a server that the client does not trust"


async def test_mutual_tls_hears_only_clients_of_the_ca(files, started, client_has):
    cert, key = files.issue("server")
    address = await started(tls_cert=cert, tls_key=key, tls_client_ca=files.ca)
    client_has(CLIENT_CA=files.ca)
    assert (await ask(address))[0] == "UNAVAILABLE"
    cert, key = files.issue("stranger", files.theirs)
    client_has(CLIENT_CA=files.ca, CLIENT_CERT=cert, CLIENT_KEY=key)
    assert (await ask(address))[0] == "UNAVAILABLE"
    cert, key = files.issue("client")
    client_has(CLIENT_CA=files.ca, CLIENT_CERT=cert, CLIENT_KEY=key)
    assert await ask(address) == ("OK", "r")


async def test_a_renewed_certificate_is_used_by_the_next_connection(files, started, client_has, caplog):
    cert, key = files.issue("server", files.theirs)
    address = await started(tls_cert=cert, tls_key=key)
    client_has(CLIENT_CA=files.ca)
    assert (await ask(address))[0] == "UNAVAILABLE"
    renewed_cert, renewed_key = files.issue("renewed")
    renewed_cert.replace(cert)  # the key does not fit yet: as any renewal looks for a moment
    assert (await ask(address))[0] == "UNAVAILABLE"
    assert "the certificate in use stays" in caplog.text
    renewed_key.replace(key)
    assert await ask(address) == ("OK", "r")


def test_the_blocking_client_speaks_tls_too(files, client_has):
    cert, key = files.issue("server")
    token = files.token_file(ranking=(("read",), Limits()))

    async def serve_and_ask():
        options = ServerOptions("localhost:0", tls_cert=cert, tls_key=key, tokens=token)
        server = GrpcServer(SERVICES, options, CollectorRegistry())
        candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Echo(), server.server)
        await server.start()
        try:
            return await asyncio.to_thread(blocking, f"localhost:{server.port}")
        finally:
            await server.server.stop(0)

    def blocking(address):
        with connect(address, candidates_pb2_grpc.CandidateServiceStub) as stub:
            return stub.GetCandidates(GetCandidatesRequest(request_id="r"), timeout=10).request_id

    client_has(CLIENT_CA=files.ca, TOKEN_FILE=files.folder / "ranking.token")
    assert asyncio.run(serve_and_ask()) == "r"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cert": "server.pem"}, "--tls-cert is set without --tls-key; allowed: both or neither"),
        ({"key": "server.key"}, "--tls-key is set without --tls-cert"),
        ({"client_ca": "ca.pem"}, "--tls-client-ca is set without --tls-cert"),
        (
            {"cert": "server.pem", "key": "other.key"},
            r"--tls-cert has value '.*server.pem' and --tls-key '.*other.key'",
        ),
        ({"cert": "gone.pem", "key": "server.key"}, "--tls-cert has value '.*gone.pem' .*No such file"),
        ({"cert": "server.pem", "key": "locked.key"}, "of its key, not encrypted"),
        (
            {"cert": "server.pem", "key": "server.key", "client_ca": "server.key"},
            "--tls-client-ca has value '.*server.key'; allowed: a PEM file of trusted certificates",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_the_name_of_their_option(files, given, said):
    files.issue("server")
    files.issue("other")
    lock(files.folder / "server.key", files.folder / "locked.key")
    paths = {name: files.folder / given[name] if name in given else None for name in ("cert", "key", "client_ca")}
    with pytest.raises(InvalidConfig, match=said):
        server_credentials(**paths)


def lock(plain, locked):
    """The same key under a password."""
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(plain.read_bytes(), None)
    form = pem.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, form))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"PINREC_CLIENT_CA": "gone.pem"}, "PINREC_CLIENT_CA has value '.*gone.pem'; allowed: a PEM file"),
        ({"PINREC_CLIENT_CERT": "c.pem", "PINREC_CLIENT_KEY": "c.key"}, "PINREC_CLIENT_CERT is set without PINREC_CL"),
        ({"PINREC_CLIENT_CA": "ca.pem", "PINREC_CLIENT_KEY": "c.key"}, "PINREC_CLIENT_KEY is set without PINREC_CLI"),
        ({"PINREC_TOKEN_FILE": "ca.pem"}, "PINREC_TOKEN_FILE is set without PINREC_CLIENT_CA: a token travels over T"),
        (
            {"PINREC_CLIENT_CA": "ca.pem", "PINREC_TOKEN_FILE": "gone"},
            "PINREC_TOKEN_FILE has value '.*gone'; allowed: a",
        ),
        ({"PINREC_CLIENT_CA": "ca.pem", "PINREC_TOKEN_FILE": "ca.pem"}, "allowed: a file with one token"),
    ],
)
def test_a_clients_files_that_cannot_be_used_are_refused_by_the_name_of_their_variable(files, given, said):
    files.issue("c")
    with pytest.raises(InvalidConfig, match=said):
        channel_credentials({name: str(files.folder / file) for name, file in given.items()})


def test_tritons_clients_speak_tls_where_triton_does():
    ca = {"PINREC_CLIENT_CA": "/ca"}
    assert triton_client_tls(ca) == triton_client_tls({**ca, "PINREC_TRITON_TLS": "0"}) == {}
    assert triton_client_tls(
        {**ca, "PINREC_TRITON_TLS": "1", "PINREC_CLIENT_CERT": "/c", "PINREC_CLIENT_KEY": "/k"}
    ) == {
        "ssl": True,
        "root_certificates": "/ca",
        "private_key": "/k",
        "certificate_chain": "/c",
    }
    for wrong in ({"PINREC_TRITON_TLS": "1"}, {**ca, "PINREC_TRITON_TLS": "yes"}):
        with pytest.raises(InvalidConfig, match="PINREC_TRITON_TLS"):
            triton_client_tls(wrong)


# --- tokens ---


def called(address, kind, method, messages):
    """What comes back, and what it ends with. Blocking: asyncio's client loses the status if it was still sending."""
    answers = []
    with open_channel(address) as channel:
        call = getattr(channel, kind)(method)
        try:
            if kind == "unary_unary":
                answers.append(call(messages[0], timeout=10))
            else:
                answers.extend(call(iter(messages), timeout=10))
        except grpc.RpcError as error:
            return answers, error
    return answers, None


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
