"""Two gateways replaced one after the other, again and again, under callers set up as the clients' page says."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.calling import FULL, Load, counted, words
from benchmarks.chaos.fleet import Fleet, listening
from benchmarks.chaos.parts import Part
from benchmarks.chaos.table import Row
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from services.cli.supervisor import Process
from services.cli.up import is_free
from services.common.probe import serves

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ranking-client.md"
LINGER = ("--linger", "1")
"""Seconds in which clients that watch health leave."""
USED_S = 2.0
"""After a gateway serves again, until clients have found it: a rollout waits for as long (minReadySeconds)."""
ROUNDS = 2


def twin_of(fleet: Fleet, folder: Path) -> Part:
    """A second gateway, on ports of its own."""
    first = fleet.parts["gateway"].process
    old = {listening(first), str(fleet.stack.gateway_metrics_port)}
    host = fleet.stack.host
    ports = iter([port for port in range(19_000, 20_000) if is_free(host, port)])
    new = {word: f"{host}:{next(ports)}" if ":" in word else str(next(ports)) for word in sorted(old)}
    process: Process = replace(first, name="twin", command=[new.get(word, word) for word in first.command])
    return Part(replace(process, ready=lambda: serves(listening(process))), folder / "twin.log")


async def roll(fleet: Fleet, rate: float, rounds: int = ROUNDS) -> Row:
    """SIGTERM to each in turn, the next only when the one before serves again."""
    twin = twin_of(fleet, fleet.stack.releases.parent)
    first = fleet.parts["gateway"]
    await asyncio.to_thread(twin.start)
    (config,) = re.findall(r"^```json\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    options = [*QUICK_RECONNECT, ("grpc.service_config", config)]
    start = time.monotonic()
    try:
        async with Load(f"ipv4:{fleet.gateway},{listening(twin.process)}", rate, options=options) as load:
            await asyncio.sleep(1.0)
            for _ in range(rounds):
                await asyncio.to_thread(twin.stop)
                await asyncio.to_thread(twin.start)
                await asyncio.sleep(USED_S)
                starts = first.starts
                await asyncio.to_thread(first.stop)  # the fleet starts it again
                while first.starts == starts or not await asyncio.to_thread(first.process.ready):
                    await asyncio.sleep(0.05)
                await asyncio.sleep(USED_S)
    finally:
        await asyncio.to_thread(twin.stop)
    counts = counted(load.calls)
    failed = len(load.calls) - counts.get(FULL, 0) - counts.get("RESOURCE_EXHAUSTED", 0)
    return Row(
        f"rolling drain: two gateways replaced in turn, {rounds} times each",
        "0 failed requests",
        f"{words(counts)} in {time.monotonic() - start:.0f} s",
        failed == 0 and counts.get(FULL, 0) > 0,
        {"seen": counts, "rate_rps": rate},
    )
