"""What health checks of containers run, against real servers."""

from __future__ import annotations

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common.probe import answers, main, serves

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def service():
    """Address of a health service, and the words that it says."""
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield address, servicer
    server.stop(None).wait()


@pytest.fixture
def web():
    """A server that is ready at /readyz and nowhere else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/readyz" else 503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run(*arguments):
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stderr


def test_grpc_health_is_the_services_own_word(service):
    address, servicer = service
    servicer.set("", NOT_SERVING)
    servicer.set("one", SERVING)
    assert (serves(address), serves(address, "one")) == (False, True)
    assert run(address) == (1, f"Error: {address} is NOT_SERVING\n")
    assert run(address, "one") == (0, "")
    servicer.set("", SERVING)
    assert run(address) == (0, "")


def test_a_service_that_is_unknown_or_not_there_is_not_healthy(service):
    address, _ = service
    code, said = run(address, "another")
    assert (code, said) == (
        1,
        f"Error: service has value 'another'; allowed: a name that {address} tells the health of\n",
    )
    code, said = run("127.0.0.1:1")
    assert (code, "127.0.0.1:1 is unavailable" in said) == (1, True)
    assert not serves("127.0.0.1:1")


def test_http_health_is_a_200(web):
    assert run(f"{web}/readyz") == (0, "")
    assert run(f"{web}/livez") == (1, f"Error: {web}/livez does not answer 200\n")
    assert not answers("http://127.0.0.1:1/readyz")
