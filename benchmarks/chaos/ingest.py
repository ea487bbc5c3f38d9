"""How fast events become durable: batches of 100 offered at a fixed rate, and as fast as they are taken."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc.aio

from benchmarks.chaos.parts import Part
from benchmarks.chaos.table import Row
from benchmarks.chaos.world import ITEMS, USERS, World
from loadtest.open_loop import Call, closed_loop, open_loop, percentiles_ms
from pinrec_core.data.synthetic import FIRST_ITEM_ID
from services.cli.up import processes
from services.proto.signals_pb2 import AppendEventsRequest, Event

BATCH = 100
RATE = 20_000
"""Events a second that must be taken."""
LATENCY_BAR_MS = 50.0
CALLERS = 8
METHOD = "/pinrec.v1.SignalService/AppendEvents"


def measure(world: World, folder: Path, seconds: float) -> list[Row]:
    """Both loads against one real signal service."""
    stack = world.stack(folder / "signals")
    service = Part(next(p for p in processes(stack) if p.name == "signals"), folder / "signals.log")
    service.start()
    try:
        offered, taken = asyncio.run(_load(f"{stack.host}:{stack.signals_port}", seconds))
    finally:
        service.stop()
    p50, p99 = percentiles_ms(offered, 50, 99)
    failed = sum(call.code is not grpc.StatusCode.OK for call in (*offered, *taken))
    span = max(call.done_s for call in taken) - min(call.scheduled_s for call in taken)
    at_most = len(taken) * BATCH / span
    reached = len(offered) * BATCH / (max(call.done_s for call in offered) - offered[0].scheduled_s)
    figures = {"p50_ms": p50, "p99_ms": p99, "events_per_s": reached, "at_most_events_per_s": at_most, "failed": failed}
    return [
        Row(
            f"durable ingest, batches of {BATCH}, as fast as {CALLERS} callers get them acknowledged",
            f">= {RATE:,} events/s",
            f"{at_most:,.0f} events/s, {failed} failed",
            at_most >= RATE and not failed,
            figures,
        ),
        Row(
            f"acknowledgement of a batch of {BATCH}, offered at {RATE:,} events/s (open loop, from the scheduled time)",
            f"p99 <= {LATENCY_BAR_MS:.0f} ms",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms at {reached:,.0f} events/s",
            p99 <= LATENCY_BAR_MS,
            figures,
        ),
    ]


async def _load(address: str, seconds: float) -> tuple[list[Call], list[Call]]:
    """The offered load, then the closed loop; requests are encoded beforehand, so that sending costs little."""
    start_ms = int(time.time() * 1000) - 3_600_000
    count = int(RATE / BATCH * seconds * 1.2)
    requests = [_request(number, start_ms) for number in range(count)]
    async with grpc.aio.insecure_channel(address) as channel:
        append = channel.unary_unary(METHOD)  # bytes in, bytes out

        async def send(number: int) -> None:
            await append(requests[number % count], timeout=10)

        await closed_loop(send, 1, 1.0)  # the connection and the service's first pages
        offered = await open_loop(send, RATE / BATCH, seconds)
        return offered, await closed_loop(send, CALLERS, seconds / 2)


def _request(number: int, start_ms: int) -> bytes:
    events = [
        Event(
            user_id=1 + (number * BATCH + i) * 7_919 % USERS,
            item_id=FIRST_ITEM_ID + (number * BATCH + i) % ITEMS,
            item_type="pin",
            action="save",
            surface="home",
            timestamp_ms=start_ms + number,
            event_id=number * BATCH + i + 1,
        )
        for i in range(BATCH)
    ]
    encoded: bytes = AppendEventsRequest(events=events).SerializeToString()
    return encoded
