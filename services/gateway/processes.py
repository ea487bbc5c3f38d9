"""Several gateway processes behind one port: one event loop is one core, and the kernel deals out the connections.

Each is a whole gateway that is started anew, not forked: nothing of gRPC survives a fork. What starts them holds the
port, so that nobody else can join in by mistake, starts again what dies or hangs, and serves nothing itself.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from pinrec_core.errors import InvalidConfig
from services.common.server import ServerOptions
from services.common.tether import TETHER
from services.gateway.group import Table

RESTART_S = 1.0
"""Between the end of a process and its next start."""

STUCK_S = 20.0
"""A process whose event loop has not turned for so long is killed. As long as Triton's keeper waits for its server."""

FAILED = 1
"""Exit code if a process could not be started at first, or did not end when told."""

_LOOK_S = 0.1
_KILL_AFTER_S = 5.0

log = logging.getLogger(__name__)


class Processes:
    """`size` gateways with the same `arguments`, until SIGTERM or SIGINT. Process I has metrics port
    `options.metrics_port` + I.
    """

    def __init__(self, size: int, options: ServerOptions, arguments: Sequence[str]) -> None:
        self._size = size
        self._options = options
        self._arguments = arguments
        self._stop = threading.Event()

    def run(self) -> int:
        """Serve. Returns the exit code. Raises InvalidConfig if the port is taken."""
        for number in (signal.SIGTERM, signal.SIGINT):
            # In a thread of its own: a handler interrupts this one, perhaps inside the event, whose lock it holds.
            signal.signal(number, lambda *_: threading.Thread(target=self._stop.set, name="stop").start())
        with ExitStack() as held:
            address = held.enter_context(reserved(self._options.listen))
            folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="pinrec-gateway-")))
            table = Table.make(folder / "table", self._size)
            members = [
                Member(table, place, self._command(address, folder / "table", place)) for place in range(self._size)
            ]
            log.info("%d processes share %s", self._size, address)
            failed = self._keep(members)
            return self._end(members) or failed

    def _command(self, address: str, table: Path, place: int) -> list[str]:
        """As this process was started, with what is a member's own; the last value of an option counts."""
        metrics_port = self._options.metrics_port and self._options.metrics_port + place
        return [
            *(sys.executable, "-m", "services.gateway.server", *self._arguments),
            *("--listen", address, "--metrics-port", str(metrics_port), "--member", str(table), str(place)),
        ]

    def _keep(self, members: Sequence[Member]) -> int:
        """Until told to stop, or until a process ends that has never taken a connection: its start is wrong."""
        while not self._stop.wait(_LOOK_S):
            if not all(member.keep() for member in members):
                return FAILED
        return 0

    def _end(self, members: Sequence[Member]) -> int:
        """SIGTERM to all at once; each drains."""
        for member in members:
            member.terminate()
        deadline = time.monotonic() + self._options.linger_s + self._options.drain_s + _KILL_AFTER_S
        return max(member.end(deadline) for member in members)


class Member:
    """One of them, through all its starts. `table` holds its row at `place`."""

    def __init__(self, table: Table, place: int, command: Sequence[str]) -> None:
        self._table = table
        self._place = place
        self._command = command
        self._has_listened = False
        self._ended_at: float | None = None
        self._beat, self._looks = 0, 0
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        """In this process group, told to stop should this process be killed."""
        self._beat = self._looks = 0
        tethered = [sys.executable, "-I", TETHER, str(os.getpid()), *self._command]
        return subprocess.Popen(tethered, stdin=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """Of the process, as it was started last."""
        return self._process.pid

    def keep(self) -> bool:
        """One look: start it again, or kill it, if need be. False if it has ended and had never listened."""
        self._has_listened |= self._table.is_listening(self._place)
        code = self._process.poll()
        if code is None:
            self._kill_if_stuck()
        elif self._ended_at is None:
            self._table.clear(self._place)
            self._ended_at = time.monotonic()
            log.error("process %d ended by itself with %d", self._place, code)
            return self._has_listened
        elif time.monotonic() - self._ended_at >= RESTART_S:
            self._ended_at = None
            self._process = self._start()
        return True

    def _kill_if_stuck(self) -> None:
        """Looks are counted, not seconds: whoever stops all of them stops this one too."""
        beat = self._table.beat(self._place)
        self._looks = self._looks + 1 if beat and beat == self._beat else 0
        self._beat = beat
        if self._looks * _LOOK_S > STUCK_S:
            log.error("process %d is killed: its event loop has not turned for %.0f s", self._place, STUCK_S)
            self._process.kill()

    def terminate(self) -> None:
        """Let it drain."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def end(self, deadline: float) -> int:
        """Wait for its end until `deadline`, in seconds of `time.monotonic`. Returns 0; FAILED if it did not drain."""
        try:
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.error("process %d was killed: it did not end", self._place)
            self._process.kill()
            self._process.wait()
            return FAILED
        # One that was not listening yet has nothing to drain, and one that waits for its restart has ended before.
        return 0 if code in (0, -signal.SIGTERM) or self._ended_at is not None else FAILED


@contextlib.contextmanager
def reserved(listen: str) -> Iterator[str]:
    """The port of `listen` for processes that share it, and for nobody else; its address, with a number for port 0.

    Raises InvalidConfig if somebody has it, another group of processes too.
    """
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise _wrong(listen) from error
    number, shared = int(port), None
    with ExitStack() as held:
        for family, kind, _, _, (name, *_) in dict.fromkeys(found):
            try:
                with _bound(family, kind, name, number, socket.SO_REUSEADDR) as alone:
                    number = alone.getsockname()[1]
                options = socket.SO_REUSEADDR, socket.SO_REUSEPORT
                shared = held.enter_context(_bound(family, kind, name, number, *options))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # a name may have an address of a kind that is not used here
                    continue
                raise _wrong(listen) from error
            # It never listens, so no connection is given to it. As long as it does not say that its address may be
            # reused, nobody can bind the port who does not share it, and `alone` above is somebody who does not.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        if shared is None:
            raise _wrong(listen)
        yield f"{host}:{number}"


def _bound(family: int, kind: int, host: str | int, port: int, *options: int) -> socket.socket:
    one = socket.socket(family, kind)
    try:
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, port))
    except OSError:
        one.close()
        raise
    return one


def _wrong(listen: str) -> InvalidConfig:
    return InvalidConfig(f"--listen has value {listen!r}; allowed with several processes: a HOST:PORT that is free")
