"""What survives a power loss, which kill -9 does not show, since the page cache outlives a process.

Two witnesses. The system calls of the real signal service: between the write of an event to RocksDB's log and its
acknowledgement, the log must have been synced. And a store whose log is cut back to the bytes that it had at some
acknowledgement: everything acknowledged by then must be there.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import grpc

from benchmarks.chaos.parts import Part
from benchmarks.chaos.table import Row
from benchmarks.chaos.world import World
from benchmarks.chaos.writers import BATCH, event_of, histories
from services.cli.up import processes
from services.proto.signals_pb2 import AppendEventsRequest
from services.proto.signals_pb2_grpc import SignalServiceStub

APPENDS, CUT_EVERY = 100, 10
USER = 7_000_077
"""Nobody of the log."""
_WRITES = ("write", "writev", "pwrite64")
_SYNCS = ("fsync", "fdatasync")
_CALL = re.compile(r"^(\d+) +([\d.]+) (\w+)\(\d+<([^>]*\.log)>.*?(?:= (-?\d+) <([\d.]+)>|<unfinished)")
_RESUMED = re.compile(r"^(\d+) +([\d.]+) <\.\.\. (\w+) resumed>.*= (-?\d+)")


class LogCall(NamedTuple):
    """A finished system call on RocksDB's log: its name and when it began and ended, Unix seconds."""

    name: str
    began: float
    ended: float


def power_loss(world: World, folder: Path, appends: int = APPENDS) -> list[Row]:
    """Trace the real service while it acknowledges; then cut its log back to where each acknowledgement found it."""
    if shutil.which("strace") is None:
        return [Row("power loss: system calls of the signal service", "strace", "strace is not installed", False)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trace, spans, sizes = traced_appends(world, folder, appends)
    synced = sum(is_synced(span, log_calls(trace)) for span in spans)
    cuts = list(enumerate(sizes))[::CUT_EVERY]
    kept = sum(survives_cut(world, folder, place, size) for place, size in cuts)
    return [
        Row(
            "power loss: system calls between an append and its acknowledgement",
            "the log is written, then synced, then nothing more is written, each time",
            f"{synced} of {len(spans)} acknowledgements",
            synced == len(spans) > 0,
            {"acknowledgements": len(spans), "synced": synced},
        ),
        Row(
            "power loss: a store whose log is cut back to its bytes at an acknowledgement",
            "every event acknowledged by then is there",
            f"{kept} of {len(cuts)} cuts",
            kept == len(cuts) > 0,
            {"cuts": len(cuts), "kept": kept},
        ),
    ]


def traced_appends(world: World, folder: Path, appends: int) -> tuple[Path, list[tuple[float, float]], list[int]]:
    """Appends one after the other: the trace, when each was sent and acknowledged, and the log's size at that time."""
    trace, stack = folder / "trace", world.stack(folder / "signals")
    process = next(p for p in processes(stack) if p.name == "signals")
    names = ",".join((*_WRITES, *_SYNCS))
    strace = ("strace", "-f", "-ttt", "-T", "-yy", "-s", "0", "-e", f"trace={names}", "-o", str(trace))
    service = Part(replace(process, command=[*strace, *process.command]), folder / "signals.log")
    service.start()
    spans, sizes, start_ms = [], [], int(time.time() * 1000) - 3_600_000
    with grpc.insecure_channel(f"{stack.host}:{stack.signals_port}") as channel:
        stub = SignalServiceStub(channel)
        for number in range(appends):
            events = [event_of(USER, number * BATCH + i, start_ms) for i in range(BATCH)]
            sent = time.time()
            stub.AppendEvents(AppendEventsRequest(events=events), timeout=30)
            spans.append((sent, time.time()))
            sizes.append(max(path.stat().st_size for path in (folder / "signals").rglob("*.log")))
    service.kill()
    return trace, spans, sizes


def log_calls(trace: Path) -> list[LogCall]:
    """System calls on RocksDB's log that succeeded, in order of their end."""
    calls, unfinished = [], {}
    for line in trace.read_text(errors="replace").splitlines():
        if found := _CALL.match(line):
            thread, began, name, _, result, took = found.groups()
            if result is None:
                unfinished[thread] = float(began)
            elif int(result) >= 0:
                calls.append(LogCall(name, float(began), float(began) + float(took)))
        elif (found := _RESUMED.match(line)) and found[1] in unfinished:
            calls.append(LogCall(found[3], unfinished.pop(found[1]), float(found[2])))
    return sorted(calls, key=lambda call: call.ended)


def is_synced(span: tuple[float, float], calls: list[LogCall]) -> bool:
    """Whether the log was written within the span and a sync began after its last write and ended before the end."""
    sent, acknowledged = span
    within = [call for call in calls if call.began >= sent and call.ended <= acknowledged]
    writes = [call.ended for call in within if call.name in _WRITES]
    return bool(writes) and any(call.name in _SYNCS and call.began >= max(writes) for call in within)


def survives_cut(world: World, folder: Path, place: int, size: int) -> bool:
    """Copy the store, cut its log to `size` bytes, serve the copy, and ask for everything acknowledged by then."""
    copy = folder / f"cut-{place}"
    shutil.copytree(folder / "signals", copy)
    log = max(copy.rglob("*.log"), key=lambda path: path.stat().st_size)
    with log.open("r+b") as file:
        file.truncate(size)
    stack = world.stack(copy)
    service = Part(next(p for p in processes(stack) if p.name == "signals"), folder / f"cut-{place}.log")
    service.start()
    with grpc.insecure_channel(f"{stack.host}:{stack.signals_port}") as channel:
        found = histories(SignalServiceStub(channel), 1, [USER])[0]
    service.kill()
    expected = list(range((place + 1) * BATCH))
    return found[: len(expected)] == expected
