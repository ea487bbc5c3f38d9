"""Ten times the capacity: what is answered, how fast the rest is refused, and how soon it is over.

Triton has a core of its own; gateway, signals, items and the callers share another. Capacity and the unloaded latency
are measured under the same pinning.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from benchmarks.chaos.calling import (
    DEADLINE_S,
    FULL,
    P99_TIMES,
    Load,
    counted,
    kind_of,
    measured_capacity,
    percentile_ms,
    request_of,
    seen,
    words,
)
from benchmarks.chaos.fleet import Change, as_they_are, running
from benchmarks.chaos.http2 import RawCall, RawConnection
from benchmarks.chaos.table import Row, show
from benchmarks.chaos.world import World
from loadtest.open_loop import Call
from services.cli.supervisor import Process
from services.proto.candidates_pb2 import GetCandidatesResponse

METHOD = "/pinrec.v1.CandidateService/GetCandidates"
CONNECTIONS = 8
TICK_S = 0.005
"""Calls that became due since the last tick are sent together, so much late at most: the callers share a core."""
TIMES = 10.0
CALM_BAR, GOODPUT_BAR, REFUSED_BAR_MS, RECOVERY_BAR_S = 0.01, 0.9, 20.0, 2.0
HALF = 0.5
"""Share of the capacity that is asked for before the overload and after it."""
CALM_S = 1.0
"""So long every call must be answered in full and in time for the overload to count as over."""
SETTLE = 0.05
"""Share of the overload that does not count: a limit that follows the latency needs a moment."""


@contextmanager
def pinned(pin: bool) -> Iterator[Change]:
    """Each part is started on its core; this process, which calls, is held to the second one."""
    before = os.sched_getaffinity(0)
    if not pin or len(before) < 2:
        yield as_they_are
        return
    first, second = sorted(before)[:2]

    def change(_: Path, started: list[Process]) -> list[Process]:
        cores = {each.name: str(first if each.name == "triton" else second) for each in started}
        return [replace(each, command=["taskset", "-c", cores[each.name], *each.command]) for each in started]

    os.sched_setaffinity(0, {second})  # before any thread of gRPC's starts
    try:
        yield change
    finally:
        os.sched_setaffinity(0, before)


def measure(world: World, folder: Path, seconds: float = 60.0, pin: bool = True) -> list[Row]:
    """All rows. `seconds`: of the overload; the other phases are a sixth of it each."""
    with pinned(pin) as change, running(world, folder, change) as fleet:
        return [show(row) for row in uvloop.run(flooded(fleet.gateway, seconds, change is not as_they_are))]


async def flooded(gateway: str, seconds: float, is_pinned: bool) -> list[Row]:
    """The rows of a stack that runs."""
    capacity = await measured_capacity(gateway, seconds / 12)
    async with Load(gateway, capacity.rps * HALF) as half:
        await asyncio.sleep(seconds / 6)
    began = time.monotonic()
    load = asyncio.create_task(flood(gateway, capacity.rps * TIMES, seconds))
    await asyncio.sleep(seconds)
    async with Load(gateway, capacity.rps * HALF) as after:
        await asyncio.sleep(seconds / 6)
    rows = judged(capacity.rps, capacity.unloaded, await load, after.calls, began, is_pinned)
    return [capacity.row(), calm(half.calls), *rows]


async def flood(address: str, rate: float, seconds: float) -> list[Call]:
    """Poisson arrivals over a few connections, by hand: a gRPC client would need more of the core than the gateway."""
    host, port = address.rsplit(":", 1)
    loop, gaps = asyncio.get_running_loop(), np.random.default_rng(0).exponential(1 / rate, int(rate * seconds * 1.1))
    connections = [RawConnection(METHOD, DEADLINE_S) for _ in range(CONNECTIONS)]
    for one in connections:
        await loop.create_connection(lambda one=one: one, host, int(port))  # type: ignore[misc]
    payloads = [request_of(number).SerializeToString() for number in range(1_000)]
    gc.disable()  # a walk through the calls of a minute would hold up the gateway's core for as long
    start = time.monotonic()
    due = (start + np.cumsum(gaps)).tolist()
    sent = tick = 0
    while (now := time.monotonic()) < start + seconds:
        until = bisect_right(due, now, sent)
        connections[tick % CONNECTIONS].send_all((payloads[n % len(payloads)], due[n]) for n in range(sent, until))
        sent, tick = until, tick + 1
        await asyncio.sleep(TICK_S)
    await asyncio.sleep(DEADLINE_S + 0.5)
    gc.enable()
    for one in connections:
        one.close()
    return sorted((_call_of(each) for one in connections for each in one.calls), key=lambda call: call.scheduled_s)


def _call_of(raw: RawCall) -> Call:
    """As the open-loop driver tells it; a call without an end has run into its deadline."""
    if raw.code is None:
        raw.code, raw.done_s = grpc.StatusCode.DEADLINE_EXCEEDED, raw.sent_s + DEADLINE_S
    kind = kind_of(GetCandidatesResponse.FromString(raw.body[5:])) if raw.code is grpc.StatusCode.OK else None
    return Call(raw.due_s, raw.done_s, raw.sent_s - raw.due_s, raw.code, kind)


def calm(calls: list[Call]) -> Row:
    """What keeps an overload out must let ordinary traffic in, which comes in Poisson's bunches."""
    counts = counted(calls)
    refused = len(calls) - counts.get(FULL, 0)
    return Row(
        f"at {HALF:.0%} of capacity, before the overload",
        f"<= {CALM_BAR:.0%} not answered in full",
        f"{refused} of {len(calls):,} ({words(counts)})",
        refused <= CALM_BAR * len(calls),
        {"seen": counts},
    )


def judged(
    capacity: float, unloaded: list[Call], during: list[Call], after: list[Call], began: float, is_pinned: bool
) -> list[Row]:
    """The four bars. Latencies count from the moment a call was sent; how late the callers were is told apart."""
    end = max(call.scheduled_s for call in during)
    began += SETTLE * (end - began)
    during = [call for call in during if call.scheduled_s > began]
    seconds = end - began
    p99_unloaded = percentile_ms(unloaded, 99)
    answered = [call for call in during if seen(call) == FULL]
    refused = [call for call in during if call.code is grpc.StatusCode.RESOURCE_EXHAUSTED]
    goodput, p99 = len(answered) / seconds, percentile_ms(answered, 99)
    refused_p50, refused_p99, refused_max = (percentile_ms(refused, percent) for percent in (50, 99, 100))
    others = {what: n for what, n in counted(during).items() if what not in (FULL, "RESOURCE_EXHAUSTED")}
    recovered = recovery_after(after, end, P99_TIMES * p99_unloaded / 1000)
    figures: dict[str, Any] = {
        "capacity_rps": capacity, "offered_rps": len(during) / seconds, "seen": counted(during), "pinned": is_pinned,
        "goodput_rps": goodput, "unloaded_p99_ms": p99_unloaded, "admitted_p50_ms": percentile_ms(answered, 50),
        "admitted_p99_ms": p99, "refused_p50_ms": refused_p50, "refused_p99_ms": refused_p99,
        "refused_max_ms": refused_max, "sent_late_p99_ms": float(np.percentile([1000 * c.late_s for c in during], 99)),
        "recovery_s": recovered,
    }  # fmt: skip
    where = "Triton on one core, everything else on another" if is_pinned else "not pinned"
    what = f"{figures['offered_rps'] / capacity:.0f}x overload for {seconds:.0f} s ({where})"
    return [
        Row(
            f"{what}: goodput / capacity",
            f">= {GOODPUT_BAR:.0%}",
            f"{goodput / capacity:.0%} ({goodput:.1f}/s of {capacity:.1f}/s; {words(counted(during))})",
            goodput / capacity >= GOODPUT_BAR,
            figures,
        ),
        Row(
            f"{what}: p99 of admitted / unloaded p99",
            f"<= {P99_TIMES}",
            f"{p99 / p99_unloaded:.2f} ({p99:.1f} ms against {p99_unloaded:.1f} ms)",
            p99 <= P99_TIMES * p99_unloaded,
        ),
        Row(
            f"{what}: the rest is refused within",
            f"{REFUSED_BAR_MS:.0f} ms, and nothing else happens to it",
            f"p50 {refused_p50:.1f} ms, p99 {refused_p99:.1f} ms, longest {refused_max:.1f} ms; else: {words(others)}",
            bool(refused) and refused_p99 <= REFUSED_BAR_MS and not others,
        ),
        Row(
            f"{what}: full service after it ends",
            f"<= {RECOVERY_BAR_S:.0f} s",
            f"{recovered:.1f} s, asked at {HALF:.0%} of capacity",
            recovered <= RECOVERY_BAR_S,
        ),
    ]


def recovery_after(calls: Sequence[Call], since_s: float, in_time_s: float) -> float:
    """Seconds until a stretch of `CALM_S` begins in which 99 % of the calls get a full answer in time; inf if none."""
    for start in (call.scheduled_s for call in calls):
        stretch = [call for call in calls if start <= call.scheduled_s < start + CALM_S]
        good = sum(seen(call) == FULL and call.latency_s <= in_time_s for call in stretch)
        if good >= 0.99 * len(stretch):
            return max(0.0, start - since_s)
    return float("inf")
