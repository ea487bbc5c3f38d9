"""Keeps a tritonserver: starts it, watches its stages, answers for its health, drains it, cleans up after it.

What a Triton container runs. It ends when the server does, or when nothing but a new start can help, with an exit code
other than 0, so that whoever started it starts it again.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

from prometheus_client import CollectorRegistry

from services.common.metrics import KeeperMetrics, process_registry
from services.common.tether import TETHER
from services.triton.client import TritonClient
from services.triton.command import TritonOptions, clean_shm, command, environment
from services.triton.health import HealthServer
from services.triton.tools import TritonServer
from services.triton.watchdog import Watchdog, stage_processes

FAILED = 1
"""Exit code where the server ended by itself or was given up."""

STUCK_S = 180.0
"""Longest that one look of the watchdog may take: every stage loaded again."""

_POLL_S = 0.1
_KILL_AFTER_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeeperOptions:
    """`linger_s`: seconds between the first 503 of /readyz after SIGTERM and the server's own SIGTERM."""

    health_port: int = 8003
    linger_s: float = 0.0


class Keeper:
    """One tritonserver, from its start to its end."""

    def __init__(self, server: TritonServer, options: TritonOptions, keeping: KeeperOptions) -> None:
        self._server = server
        self._options = replace(options, admin_key=options.admin_key or secrets.token_hex(16))
        self._keeping = keeping
        self._stop = threading.Event()
        self._draining = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the end of the server. Returns the exit code of the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # In a thread of its own: a handler interrupts this one, perhaps inside the event, whose lock it holds.
            signal.signal(number, lambda *_: threading.Thread(target=self._stop.set, name="stop").start())
        clean_shm(self._options)
        registry = process_registry()
        watchdog = self._watchdog(registry)
        health = HealthServer(
            *(self._options.host, self._keeping.health_port),
            *(partial(alive, watchdog), partial(self._ready, watchdog)),
            registry,
        )
        child = self._child = self._start()
        threading.Thread(target=watchdog.run, args=(self._stop,), name="watchdog", daemon=True).start()
        try:
            return self._keep(child, watchdog)
        finally:
            health.close()
            clean_shm(self._options)

    def _start(self) -> subprocess.Popen[bytes]:
        """The server, in our process group, told to stop should we be killed."""
        line = command(self._server, self._options)
        tethered = [sys.executable, "-I", TETHER, str(os.getpid()), *line]
        return subprocess.Popen(tethered, env=environment(self._server, self._options), stdin=subprocess.DEVNULL)

    def _watchdog(self, registry: CollectorRegistry) -> Watchdog:
        host = "localhost" if self._options.host in ("0.0.0.0", "::") else self._options.host
        client = TritonClient(f"{host}:{self._options.grpc_port}", self._options.admin_key)
        return Watchdog(client, self._options.releases, self._options.models, KeeperMetrics(registry), self._processes)

    def _processes(self, stage: str) -> list[int]:
        assert self._child is not None
        return stage_processes(self._child.pid, stage)

    def _ready(self, watchdog: Watchdog) -> str:
        return "draining" if self._draining else watchdog.problem

    def _keep(self, child: subprocess.Popen[bytes], watchdog: Watchdog) -> int:
        while not self._stop.wait(_POLL_S):
            code = child.poll()
            if code is not None:
                log.error("the server ended by itself with %d", code)
                return FAILED
            if watchdog.gave_up:
                child.kill()  # asking would take longer, and what it worked on is lost anyhow
                child.wait()
                return FAILED
        self._drain(child)
        return 0

    def _drain(self, child: subprocess.Popen[bytes]) -> None:
        """Not ready at once; the server, which fails what it works on, is told when callers have had time to notice."""
        log.info("draining")
        self._draining = True
        time.sleep(self._keeping.linger_s)
        self._end(child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        child.terminate()
        try:
            child.wait(self._options.exit_timeout_s + _KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            log.warning("the server was killed: it did not end")
            child.kill()
            child.wait()


def alive(watchdog: Watchdog) -> str:
    """Why the keeper cannot keep any more; empty while it can."""
    if watchdog.gave_up:
        return watchdog.problem
    since = time.monotonic() - watchdog.stepped_at
    return f"the watchdog has not looked for {since:.0f} s" if since > STUCK_S else ""
