"""Twenty minutes at 60 % of the capacity, with appends: errors, and how much memory each part has grown.

    python -m benchmarks.chaos.soak --work work/chaos --report docs/figures

Memory is the kernel's proportional set size, so that what processes share counts once. The first fifth is warm-up.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import asyncio
import signal
import sys
import threading
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.chaos.calling import FULL, Load, counted, measured_capacity, words
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.parts import pss_mb
from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, make_world
from benchmarks.chaos.writers import Writer
from loadtest.open_loop import Call, percentiles_ms

SHARE_OF_CAPACITY = 0.6
GROWTH_BAR = 0.02
WARM_UP = 0.2
"""Share of the time that does not count; then the first and the last tenth of the rest are compared."""
LOOKS = 120
APPEND_EVERY_S = 0.2

Memory = dict[str, list[float]]
"""Megabytes of each part at each look."""


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for chaos-soak.json.")
@click.option("--minutes", default=20.0, show_default=True, help="How long.")
def main(work: Path, report: Path | None, minutes: float) -> None:
    """Run and print the table."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave every context, and with them no process behind
    rows = measure(make_world(work / "world"), work / "soak", minutes * 60)
    if report is not None:
        save(rows, report / "chaos-soak.json", "make soak")
    finish(rows)


def measure(world: World, folder: Path, seconds: float) -> list[Row]:
    """All rows."""
    with running(world, folder) as fleet:
        return [show(row) for row in soak(fleet, seconds, capacity_s=min(5.0, seconds / 4))]


def soak(fleet: Fleet, seconds: float, capacity_s: float, looks: int = LOOKS) -> list[Row]:
    """Ask, append, and look at memory now and then. `capacity_s`: for each number of callers."""
    capacity = asyncio.run(measured_capacity(fleet.gateway, capacity_s))
    start_ms = int(time.time() * 1000) - 3_600_000
    writer = Writer(fleet.signals, 40_000, start_ms, release=fleet.release, pause_s=APPEND_EVERY_S)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        calls, memory = asyncio.run(_soak(fleet, seconds, SHARE_OF_CAPACITY * capacity.rps, looks))
    finally:
        writer.stop.set()
        thread.join()
    return [capacity.row(), *judged(SHARE_OF_CAPACITY * capacity.rps, calls, memory, writer, fleet.restarts())]


async def _soak(fleet: Fleet, seconds: float, rate: float, looks: int) -> tuple[list[Call], Memory]:
    memory: Memory = {name: [] for name in fleet.parts}
    async with Load(fleet.gateway, rate) as load:
        for _ in range(looks):
            await asyncio.sleep(seconds / looks)
            for name, sessions in fleet.sessions.items():
                memory[name].append(await asyncio.to_thread(pss_mb, sessions))
    return load.calls, memory


def growth(samples: list[float]) -> tuple[float, float, float]:
    """Megabytes after the warm-up and at the end (medians of a tenth of the rest each), and the relative growth."""
    rest = samples[int(len(samples) * WARM_UP) :]
    tenth = max(1, len(rest) // 10)
    before, after = float(np.median(rest[:tenth])), float(np.median(rest[-tenth:]))
    return before, after, after / before - 1 if before else 0.0


def judged(rate: float, calls: list[Call], memory: Memory, writer: Writer, restarts: int) -> list[Row]:
    """Errors, and growth of all parts together; each part's is told."""
    counts = counted(calls)
    errors = sum(count for what, count in counts.items() if what != FULL) + writer.repeats + writer.misses + restarts
    total = np.sum(list(memory.values()), axis=0).tolist()
    before, after, grown = growth(total)
    parts = {name: growth(samples) for name, samples in memory.items()}
    p50, p99 = percentiles_ms(calls, 50, 99)
    told = ", ".join(f"{name} {first:.0f} to {last:.0f} MB" for name, (first, last, _) in parts.items())
    appended = sum(writer.acknowledged.values())
    figures = {
        "rate_rps": rate, "seen": counts, "p50_ms": p50, "p99_ms": p99, "appended": appended,
        "memory_mb": memory, "growth": grown, "growth_by_part": {name: share for name, (_, _, share) in parts.items()},
    }  # fmt: skip
    minutes = (calls[-1].scheduled_s - calls[0].scheduled_s) / 60
    what = f"{minutes:.0f} minutes at {SHARE_OF_CAPACITY:.0%} of capacity ({rate:.0f}/s)"
    return [
        Row(
            f"{what}: errors",
            "0",
            f"{errors} ({words(counts)}; {appended:,} events appended, {writer.repeats} failed, "
            f"{writer.misses} not in the next history; {restarts} restarts); p50 {p50:.1f} ms, p99 {p99:.1f} ms",
            errors == 0,
            figures,
        ),
        Row(
            f"{what}: memory after warm-up",
            f"<= {GROWTH_BAR:.0%} growth",
            f"{before:.0f} to {after:.0f} MB, {grown:+.1%} ({told})",
            grown <= GROWTH_BAR,
        ),
    ]


if __name__ == "__main__":
    main()
