"""A process of the stack that a fault test starts, hurts and starts again; and memory as the kernel counts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

from services.cli.supervisor import Process

START_TIMEOUT_S = 120.0


class Part:
    """One process, the leader of a session of its own, with its output in a file."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.starts = 0
        self.startup_s = 0.0
        """From the last start until it was ready."""
        self.sessions: list[int] = []
        """Of every start so far, with those of what it started in turn."""
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """Of the process."""
        return self.process.name

    @property
    def pid(self) -> int:
        """Of the leader, as it was started last."""
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        """Start and wait until ready. Raises RuntimeError with the end of its log if it dies or is late."""
        began = time.monotonic()
        self.starts += 1
        with self.log.open("a") as file:
            self._popen = subprocess.Popen(
                self.process.command,
                env=dict(self.process.environment),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.sessions.append(self._popen.pid)
        if not wait_for(lambda: self.code() is not None or self.process.ready()) or self.code() is not None:
            raise RuntimeError(f"{self.name} did not start: {self.last_words()}")
        self.startup_s = time.monotonic() - began

    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self._popen.poll() if self._popen is not None else 0

    def end(self, how: signal.Signals) -> int:
        """Send the leader a signal and wait for its exit code. Raises RuntimeError if that does not end it."""
        assert self._popen is not None
        self.living()  # takes down the sessions while their processes can still be found
        self._popen.send_signal(how)
        if not wait_for(lambda: self.code() is not None):
            raise RuntimeError(f"{how.name} did not end {self.name}: {self.last_words()}")
        return self._popen.returncode

    def kill(self) -> None:
        """SIGKILL to all of it: what a machine that dies does to it."""
        for pid in self.living():
            send(pid, signal.SIGKILL)
        if self._popen is not None:
            self._popen.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self.end(signal.SIGTERM) if self._popen is not None else 0

    def living(self) -> dict[int, str]:
        """Command lines of the living processes of every start so far."""
        if self._popen is not None and self.code() is None:
            self.sessions = sorted({*self.sessions, *sessions_under(self._popen.pid)})
        return commands_of(self.sessions)

    def stages(self) -> dict[str, int]:
        """Processes of Triton's Python models by the model's name."""
        models = {pid: re.search(r"(\w+)/1/model\.py", words) for pid, words in self.living().items()}
        return {found[1]: pid for pid, found in models.items() if found}

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-5_000:]


def wait_for(condition: Callable[[], bool], seconds: float = START_TIMEOUT_S) -> bool:
    """Poll until true; False after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def send(pid: int, number: signal.Signals) -> bool:
    """A signal to a process; False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def commands_of(sessions: Collection[int]) -> dict[int, str]:
    """Command lines of the living processes of some sessions; a zombie is not alive."""
    found = {}
    for pid, (state, _, session) in _stats().items():
        if session in sessions and state != "Z":
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            except OSError:  # gone meanwhile
                continue
    return found


def sessions_under(pid: int) -> list[int]:
    """Sessions of a process and of everything that it started, directly or not."""
    stats, waiting = _stats(), [pid]
    found: set[int] = set()
    while waiting:
        one = waiting.pop()
        found.update(stats[one][2:] if one in stats else ())
        waiting += [child for child, (_, parent, _) in stats.items() if parent == one]
    return sorted(found)


def pss_mb(sessions: Collection[int]) -> float:
    """Proportional set size of all processes of some sessions, in megabytes: shared pages are counted once."""
    return sum(map(pss_mb_of, commands_of(sessions)))


def pss_mb_of(pid: int) -> float:
    """The same of one process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def _stats() -> dict[int, tuple[str, int, int]]:
    """Of every process: state, parent and session."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            state, parent, _, session = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            found[int(folder.name)] = state, int(parent), int(session)
        except (OSError, ValueError):  # not a process, or gone meanwhile
            continue
    return found
