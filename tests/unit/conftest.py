"""Servers of small services at real ports, with or without credentials."""

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from services.common.server import GrpcServer, ServerOptions
from services.proto import candidates_pb2_grpc, signals_pb2_grpc
from tests.guarded import SERVICES, VARIABLES, Counting, Echo, Files


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
