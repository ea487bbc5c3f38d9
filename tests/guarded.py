"""Small services, and the files that a port with TLS and tokens and its clients need."""

from __future__ import annotations

from pathlib import Path

import grpc
import grpc.aio
import trustme

from services.common.client import open_aio_channel, open_channel
from services.common.tokens import Client, digest_of, new_token, write_clients
from services.proto import candidates_pb2_grpc, signals_pb2_grpc
from services.proto.candidates_pb2 import BatchGetCandidatesResponse, GetCandidatesRequest, GetCandidatesResponse
from services.proto.signals_pb2 import AppendEventsResponse

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


async def ask(address):
    """OK and the echo, or the code of the failure and its words."""
    async with open_aio_channel(address) as channel:
        try:
            stub = candidates_pb2_grpc.CandidateServiceStub(channel)
            reply = await stub.GetCandidates(GetCandidatesRequest(request_id="r"), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details()
    return "OK", reply.request_id


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
