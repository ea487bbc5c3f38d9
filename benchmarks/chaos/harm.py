"""What is done to a running stack: each a context, inflicted on entering, over on leaving."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.calling import request_of
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.http2 import call_of, grpc_headers, opening
from benchmarks.chaos.parts import send
from services.cli.supervisor import Process

SHM = Path("/dev/shm")
SLOW_SHARE = 0.8
"""Of the time that a slowed stage is stopped."""
SLOW_READERS = 200
_PULSE_S = 0.1
_FILL_BYTES = 1 << 20


def tritonserver(fleet: Fleet) -> int:
    """Process id of the server itself, which a keeper may have started."""
    living = fleet.parts["triton"].living()
    return next(pid for pid, words in living.items() if words.split(" ")[0].endswith("/tritonserver"))


def stage_names(fleet: Fleet) -> list[str]:
    """The four stages."""
    return sorted(fleet.parts["triton"].stages())


@contextmanager
def killed(fleet: Fleet, name: str) -> Iterator[None]:
    """SIGKILL to the process; the fleet starts it again."""
    send(fleet.parts[name].pid, signal.SIGKILL)
    yield


@contextmanager
def server_killed(fleet: Fleet) -> Iterator[None]:
    """SIGKILL to tritonserver, and not to what keeps it."""
    send(tritonserver(fleet), signal.SIGKILL)
    yield


@contextmanager
def stage_killed(fleet: Fleet, name: str) -> Iterator[None]:
    """SIGKILL to the process of a stage."""
    send(fleet.parts["triton"].stages()[name], signal.SIGKILL)
    yield


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    for pid in pids:
        send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            send(pid, signal.SIGCONT)


def frozen(fleet: Fleet, name: str) -> AbstractContextManager[None]:
    """The part's own process."""
    return stopped([fleet.parts[name].pid])


def server_frozen(fleet: Fleet) -> AbstractContextManager[None]:
    """tritonserver, and not what keeps it."""
    return stopped([tritonserver(fleet)])


def stage_frozen(fleet: Fleet, name: str) -> AbstractContextManager[None]:
    """The process of a stage."""
    return stopped([fleet.parts["triton"].stages()[name]])


@contextmanager
def slowed(fleet: Fleet) -> Iterator[None]:
    """Stop and continue the decoder's process in turn."""
    over, pid = threading.Event(), fleet.parts["triton"].stages()["generate"]

    def pulse() -> None:
        while not over.is_set():
            with stopped([pid]):
                time.sleep(_PULSE_S * SLOW_SHARE)
            time.sleep(_PULSE_S * (1 - SLOW_SHARE))

    thread = threading.Thread(target=pulse)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def slow_readers(fleet: Fleet) -> Iterator[None]:
    """Connections that ask for candidates, give the server no window for the answer and read nothing."""
    headers = grpc_headers("/pinrec.v1.CandidateService/GetCandidates", deadline_s=60.0)
    call = opening(window=0) + call_of(1, headers, request_of(0).SerializeToString())
    host, port = fleet.gateway.rsplit(":", 1)
    with contextlib.ExitStack() as connections:
        for _ in range(SLOW_READERS):
            one = connections.enter_context(socket.create_connection((host, int(port)), timeout=10))
            one.sendall(call)
        yield


@contextmanager
def filled(_: Fleet, folder: Path) -> Iterator[None]:
    """Write to a file until nothing more fits."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\1" * _FILL_BYTES) == _FILL_BYTES:
            pass
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\1"):
            pass
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def filled_and_killed(fleet: Fleet) -> Iterator[None]:
    """A stage that is loaded again needs shared memory, and there is none."""
    with filled(fleet, SHM), stage_killed(fleet, "embed_items"):
        yield


def index_file(fleet: Fleet) -> Path:
    """The active release's index: the largest of its files."""
    folder = fleet.stack.releases / str(fleet.release) / "index"
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@contextmanager
def restored(path: Path) -> Iterator[None]:
    """Put a file's bytes back at the end, in place: processes have it mapped."""
    content = path.read_bytes()
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.write(content)
            file.truncate()


@contextmanager
def flipped(fleet: Fleet) -> Iterator[None]:
    """The stages refuse the release when they open it again; the file comes back after a while."""
    path = index_file(fleet)
    with restored(path):
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes((byte ^ 0xFF,)))
        send(fleet.parts["triton"].pid, signal.SIGKILL)
        yield


@contextmanager
def cut_off(fleet: Fleet) -> Iterator[None]:
    """What is mapped and is no longer there kills the process that reads it (SIGBUS)."""
    path = index_file(fleet)
    with restored(path):
        os.truncate(path, path.stat().st_size // 2)
        yield


def clock_file(fleet: Fleet) -> Path:
    """Seconds by which the clocks of `clocked` processes are wrong."""
    return fleet.stack.releases.with_name("clock")


def clocked(folder: Path, process: Process) -> Process:
    """A Python module whose clock follows `folder`/clock."""
    (folder / "clock").write_text("0")
    python, module_flag, *words = process.command
    assert module_flag == "-m"
    return replace(process, command=[python, "-m", "benchmarks.chaos.clock", str(folder / "clock"), *words])


@contextmanager
def skewed(fleet: Fleet, seconds: float) -> Iterator[None]:
    """The clocks jump, and jump back."""
    clock_file(fleet).write_text(str(seconds))
    try:
        yield
    finally:
        clock_file(fleet).write_text("0")
