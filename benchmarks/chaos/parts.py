"""A process of the stack that a fault test starts, hurts and starts again; and memory as the kernel counts it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from services.cli.supervisor import Process

START_TIMEOUT_S = 120.0


class Part:
    """One process, the leader of a session of its own, with its output in a file."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until ready. Raises RuntimeError with the end of its log if it dies or is late."""
        with self.log.open("a") as file:
            self._popen = subprocess.Popen(
                self.process.command,
                env=dict(self.process.environment),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        if not wait_for(lambda: self.code() is not None or self.process.ready()) or self.code() is not None:
            raise RuntimeError(f"{self.process.name} did not start: {self.log.read_text()[-3_000:]}")

    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self._popen.poll() if self._popen is not None else 0

    def kill(self) -> None:
        """SIGKILL to the whole session: what a machine that dies does to it."""
        if self._popen is not None and self.code() is None:
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self._popen is None:
            return 0
        self._popen.terminate()
        return self._popen.wait(timeout=60)

    @property
    def session(self) -> int:
        """Session id, which is also the leader's process id; 0 before the first start."""
        return self._popen.pid if self._popen is not None else 0


def wait_for(condition: Callable[[], bool], seconds: float = START_TIMEOUT_S) -> bool:
    """Poll until true; False after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def pss_mb(sessions: list[int]) -> float:
    """Proportional set size of all processes of some sessions, in megabytes: shared pages are counted once."""
    total_kb = 0
    for folder in Path("/proc").iterdir():
        try:
            session = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3])
            if session in sessions:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total_kb += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError, IndexError, StopIteration):  # not a process, or gone meanwhile
            continue
    return total_kb / 1000
