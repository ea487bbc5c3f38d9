"""Starts processes in order, streams their logs, and stops all of them when one dies or it is asked to.

Each runs in a process group of its own, so that Ctrl-C reaches only the supervisor and a process is stopped together
with its children; should the supervisor be killed, the kernel tells each to stop (`services/common/tether.py`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pinrec_core.errors import PinrecError
from services.common.tether import TETHER

LAST_LINES = 20
"""Lines of a dead process that are told again at the end."""

_POLL_S = 0.1
_STILL_WAITING_S = 5.0


class ProcessFailed(PinrecError):
    """A supervised process ended by itself or did not become ready."""


@dataclass(frozen=True)
class Process:
    """What to start. `ready` is polled and must return within about a second; times are in seconds."""

    name: str
    command: Sequence[str]
    ready: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    ready_timeout_s: float = 120.0
    stop_timeout_s: float = 20.0


class Supervisor:
    """Use as a context: entering starts the processes in order, leaving stops them in reverse order.

    `echo` is called with one line at a time, from several threads but never at once.
    """

    def __init__(self, processes: Sequence[Process], echo: Callable[[str], None]) -> None:
        self._processes = processes
        self._echo = echo
        self._echo_lock = threading.Lock()
        self._stop_requested = threading.Event()
        self._running: list[_Running] = []

    def __enter__(self) -> Supervisor:
        """Start all, or none: if one fails, those before it are stopped. Raises ProcessFailed."""
        try:
            for process in self._processes:
                if not self._stop_requested.is_set():
                    self._start(process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def complete(self) -> bool:
        """Whether every process was started and became ready."""
        return len(self._running) == len(self._processes) and not self._stop_requested.is_set()

    def request_stop(self) -> None:
        """Let `wait` (or the start) return; may be called from a signal handler."""
        self._stop_requested.set()

    def wait(self) -> None:
        """Return when a stop is requested. Raises ProcessFailed as soon as a process ends by itself."""
        while not self._stop_requested.wait(_POLL_S):
            self._check()

    def stop(self) -> None:
        """Stop what runs, last started first: each is asked, given its time, then killed with its children."""
        while self._running:
            running = self._running.pop()
            if running.returncode() is None:
                self.say(running.process.name, "stopping")
            if not running.stop():
                self.say(running.process.name, f"killed: it did not stop in {running.process.stop_timeout_s:.0f} s")

    def say(self, name: str, line: str) -> None:
        """Print one line under a process's name."""
        width = max(len(process.name) for process in self._processes)
        with self._echo_lock:
            self._echo(f"{name:<{width}} | {line}")

    def _start(self, process: Process) -> None:
        start = time.monotonic()
        self.say(process.name, "starting")
        self._running.append(_Running(process, self.say))
        told = start
        while not process.ready():
            self._check()
            now = time.monotonic()
            if self._stop_requested.wait(_POLL_S):
                return
            if now - start > process.ready_timeout_s:
                raise ProcessFailed(self._report(self._running[-1], f"is not ready after {now - start:.0f} s"))
            if now - told > _STILL_WAITING_S:
                told = now
                self.say(process.name, f"not ready yet, {now - start:.0f} s")
        self.say(process.name, f"ready after {time.monotonic() - start:.1f} s")

    def _check(self) -> None:
        for running in self._running:
            code = running.returncode()
            if code is not None:
                running.drain()
                raise ProcessFailed(self._report(running, f"ended by itself with {_exit_words(code)}"))

    def _report(self, running: _Running, what: str) -> str:
        lines = "".join(f"\n  {line}" for line in running.last_lines)
        return f"{running.process.name} {what}; its last lines:{lines or ' none'}"


class _Running:
    """One started process, the leader of its own process group, and the thread that reads its output."""

    def __init__(self, process: Process, say: Callable[[str, str], None]) -> None:
        self.process = process
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._popen = subprocess.Popen(
            [sys.executable, "-I", TETHER, str(os.getpid()), *process.command],
            env=dict(process.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()

    def returncode(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def drain(self) -> None:
        """Wait a moment for the last lines of a process that has ended."""
        self._reader.join(timeout=1.0)

    def stop(self) -> bool:
        """SIGTERM to the process, then SIGKILL to what is left of its group. Returns whether it stopped in time."""
        in_time = True
        with contextlib.suppress(ProcessLookupError):
            self._popen.terminate()
        try:
            self._popen.wait(self.process.stop_timeout_s)
        except subprocess.TimeoutExpired:
            in_time = False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self.drain()
        return in_time

    def _read(self, say: Callable[[str, str], None]) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                self.last_lines.append(line.rstrip("\n"))
                say(self.process.name, line.rstrip("\n"))


def _exit_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}"
