"""TLS and mutual TLS at a real port, with real certificates; files that cannot be used are refused by name."""

import asyncio
import re
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.errors import InvalidConfig
from pinrec_core.serving.triton_tls import triton_client_tls
from services.common.client import channel_credentials, connect
from services.common.limits import Limits
from services.common.server import GrpcServer, ServerOptions
from services.common.tls import server_credentials
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import GetCandidatesRequest
from tests.guarded import SERVICES, Echo, ask


async def test_a_certificate_makes_the_port_speak_tls_only(files, started, client_has):
    cert, key = files.issue("server")
    address = await started(tls_cert=cert, tls_key=key)
    assert (await ask(address))[0] == "UNAVAILABLE", "without TLS"
    client_has(CLIENT_CA=files.ca)
    assert await ask(address) == ("OK", "r")
    files.theirs.cert_pem.write_to_path(files.ca)
    assert (await ask(address))[0] == "UNAVAILABLE", "a server that the client does not trust"


def test_whoever_scans_the_port_leaves_no_line_in_the_log(files):
    cert, key = files.issue("server")
    command = [sys.executable, "-m", "services.gateway.server", "--releases", str(files.folder), "--listen"]
    command += ["localhost:0", "--metrics-port", "0", "--tls-cert", str(cert), "--tls-key", str(key)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        port = int(re.search(r"listening on port (\d+)", process.stderr.readline())[1])
        for _ in range(20):
            with socket.create_connection(("localhost", port)) as scanner:
                scanner.sendall(b"GET / HTTP/1.0\r\n\r\n")
                with suppress(ConnectionResetError):
                    scanner.recv(100)  # until it is hung up on
        process.terminate()
        lines = process.stderr.read().splitlines()
    assert not [line for line in lines if "ssl" in line.lower()]
    assert len(lines) < 10


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
