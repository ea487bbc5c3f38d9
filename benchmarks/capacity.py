"""What one request costs each process, and the arithmetic from there to any size.

    python -m benchmarks.capacity --work work/chaos --report docs/figures --users 500e6 --items 1e9 --rps 100e3

CPU time is the kernel's, of every process of the running stack, while callers ask without a pause. The bytes of a user
and of an item are those of docs/promises.md; what was not measured here is an option, and stands in the table as such.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import asyncio
import math
import os
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.chaos.calling import capacity_rps
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.table import Row, save, show
from benchmarks.chaos.world import make_world

CALLERS = 8
EVENT_BYTES, USER_BYTES, REALTIME_BYTES = 33, 24, 22
"""Mapped bytes of an event and of a user in the batch view, and of an event in the realtime view (docs/promises.md)."""
ITEM_OVERHEAD, INDEX_OVERHEAD, SIGNALS_ITEM_BYTES = 13, 25, 20
ROW_OVERHEAD = 4 + 8 + 1 + 4 + 4 + 8
"""Bytes of an event on the wire beside its content: scale, item, type, action, surface, time."""
SEEN_BYTES = 8 * 2_000
CANDIDATE_BYTES = 25
REALTIME_DAYS = 3.0
"""How long the realtime view keeps an event: up to a day until a batch view has it, then 48 hours of retention."""
APPENDS_A_SECOND = 56_000
"""That one signal service acknowledged in batches of 100 on two cores (docs/promises.md)."""


@dataclass(frozen=True)
class Size:
    """What is to be served. The last three were not measured here."""

    users: float
    items: float
    rps: float
    events: int = 240
    events_a_day: float = 16.0
    """Of a user, on average."""
    history: int = 256
    width: int = 256
    """D and D_sem."""
    parameters: float = 85e6
    """Of the decoder: 12 layers of width 768."""
    gpu_tflops: float = 50.0
    """What a GPU sustains on this decoder."""
    host_gb: float = 400.0
    """Memory of a host that data may fill."""


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for capacity.json.")
@click.option("--users", default=500e6, show_default=True)
@click.option("--items", default=1e9, show_default=True)
@click.option("--rps", default=100e3, show_default=True, help="Requests a second at the peak: an assumption.")
@click.option("--gpu-tflops", default=50.0, show_default=True, help="That a GPU sustains: an assumption.")
@click.option("--seconds", default=10.0, show_default=True, help="How long costs are measured.")
def main(
    work: Path, report: Path | None, users: float, items: float, rps: float, gpu_tflops: float, seconds: float
) -> None:
    """Measure the costs, and print them with the arithmetic."""
    with running(make_world(work / "world"), work / "capacity") as fleet:
        costs, answered = asyncio.run(cpu_ms(fleet, seconds))
    size = Size(users, items, rps, gpu_tflops=gpu_tflops)
    rows = [show(row) for row in [*cost_rows(costs, answered), *needs(size, costs)]]
    if report is not None:
        save(rows, report / "capacity.json", "make capacity")


async def cpu_ms(fleet: Fleet, seconds: float) -> tuple[dict[str, float], float]:
    """CPU milliseconds of each process for one request, and requests a second, while callers ask without a pause."""
    await capacity_rps(fleet.gateway, seconds / 2, (CALLERS,))
    before = cpu_seconds(fleet)
    rate = await capacity_rps(fleet.gateway, seconds / 2, (CALLERS,))
    answered = rate * seconds  # its two rounds
    return {name: 1000 * (used - before[name]) / answered for name, used in cpu_seconds(fleet).items()}, rate


def cpu_seconds(fleet: Fleet) -> dict[str, float]:
    """User and system time of each process so far."""
    return {name: sum(map(_cpu_seconds, several)) for name, several in pids_of(fleet).items()}


def pids_of(fleet: Fleet) -> dict[str, list[int]]:
    """Processes by what they do; Triton's stages one by one."""
    triton = fleet.parts["triton"]
    stages = triton.stages()
    pids = {name: [part.pid] for name, part in fleet.parts.items() if name != "triton"}
    pids |= {name: [pid] for name, pid in stages.items()}
    pids["tritonserver and its keeper"] = [pid for pid in triton.living() if pid not in stages.values()]
    return pids


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost_rows(costs: dict[str, float], rate: float) -> list[Row]:
    """A row a process."""
    asked = f"{CALLERS} callers without a pause, {rate:.0f} answers/s on this machine"
    return [
        Row(f"CPU of {name} for one request", "stated", f"{ms:.2f} ms: {1000 / ms:,.0f} requests/s a core", None)
        for name, ms in costs.items()
        if ms > 0
    ] + [Row("measured with", "stated", asked, None, {"cpu_ms": costs, "rps": rate})]


def needs(size: Size, costs: dict[str, float]) -> list[Row]:
    """The arithmetic, one line a resource."""
    flop = 2 * size.parameters * (size.history + 1)
    per_gpu = size.gpu_tflops * 1e12 / flop
    view = size.users * (size.events * EVENT_BYTES + USER_BYTES)
    realtime = size.users * size.events_a_day * REALTIME_DAYS * REALTIME_BYTES
    appends = size.users * size.events_a_day / 86_400
    index = size.items * (1.5 * size.width + INDEX_OVERHEAD)
    table = size.items * (size.width + ITEM_OVERHEAD)
    history = size.history * (size.width + ROW_OVERHEAD) + SEEN_BYTES
    ids = size.history * size.width * 2
    cores = {name: size.rps * costs[name] / 1000 for name in ("gateway", "signals")}
    lines = {
        "GPUs for the decoder": f"{flop / 1e9:.0f} GFLOP a prefill, {per_gpu:,.0f} requests/s at {size.gpu_tflops:.0f} "
        f"TFLOPS (not measured): {math.ceil(size.rps / per_gpu):,} GPUs",
        "cores for gateways": f"{cores['gateway']:,.0f}",
        "cores for signal services": f"{cores['signals']:,.0f}, with histories as short as measured",
        "batch view": f"{view / 1e9:,.0f} GB, divided over the signal services",
        "item table, on the host of each signal service": f"{table / 1e9:,.0f} GB mapped, and "
        f"{size.items * SIGNALS_ITEM_BYTES / 1e9:,.0f} GB of memory",
        "hosts of signal services": _hosts(view, size.host_gb, table + size.items * SIGNALS_ITEM_BYTES),
        "realtime view, one copy": _hosts(realtime, size.host_gb),
        "events to append": f"{appends:,.0f}/s on average: {math.ceil(appends / APPENDS_A_SECOND)} x what one service "
        f"on two cores takes ({APPENDS_A_SECOND:,}/s); plan for the peak",
        "index, one replica": _hosts(index, size.host_gb),
        "network into the GPU hosts": f"{history / 1e3:.0f} kB of history a request: {_gbit(history * size.rps)}; "
        f"ID embeddings from a memory host {ids / 1e3:.0f} kB: {_gbit(ids * size.rps)}",
        "network out of the gateways": f"300 candidates: {_gbit(300 * CANDIDATE_BYTES * size.rps)}",
    }
    what = f"{size.users / 1e6:,.0f} M users, {size.items / 1e6:,.0f} M items, {size.rps:,.0f} requests/s"
    return [Row(f"{what}: {name}", "arithmetic", line, None) for name, line in lines.items()]


def _hosts(size_bytes: float, host_gb: float, each_bytes: float = 0.0) -> str:
    """How many hosts hold what is divided over them, `size_bytes`, beside what each must hold, `each_bytes`."""
    room_gb = host_gb - each_bytes / 1e9
    if room_gb <= 0:
        return f"none of {host_gb:.0f} GB will do: {each_bytes / 1e9:,.0f} GB are on each"
    hosts = math.ceil(size_bytes / 1e9 / room_gb)
    return f"{size_bytes / 1e9:,.0f} GB: {hosts} host{'s' if hosts > 1 else ''} with {room_gb:.0f} GB for it" + (
        f" beside those {each_bytes / 1e9:,.0f} GB" if each_bytes else ""
    )


def _gbit(bytes_a_second: float) -> str:
    return f"{bytes_a_second * 8 / 1e9:,.1f} Gbit/s"


if __name__ == "__main__":
    main()
