"""What orchestrators and Prometheus ask Triton's keeper, over HTTP: /livez, /readyz, /metrics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from pinrec_core.errors import InvalidConfig

_REQUEST_TIMEOUT_S = 5.0

log = logging.getLogger(__name__)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A probe that hung up before its answer came has had its answer: nothing for the log."""
        log.debug("%s hung up", client_address, exc_info=True)


class HealthServer:
    """Answers 200 where `alive` or `ready` returns an empty text, else 503 with the text that it returns."""

    def __init__(
        self, host: str, port: int, alive: Callable[[], str], ready: Callable[[], str], registry: CollectorRegistry
    ) -> None:
        """Listen. Raises InvalidConfig if the port is taken."""
        questions = {"/livez": alive, "/readyz": ready}

        class Handler(BaseHTTPRequestHandler):
            timeout = _REQUEST_TIMEOUT_S

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path in questions:
                    problem = questions[path]()
                    self._answer(503 if problem else 200, "text/plain; charset=utf-8", f"{problem or 'ok'}\n".encode())
                elif path == "/metrics":
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
                else:
                    self._answer(404, "text/plain; charset=utf-8", b"not found\n")

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Probes come every few seconds: no line each."""

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise InvalidConfig(f"--health-port has value {port}; allowed: a free port") from error
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
