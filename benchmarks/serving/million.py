"""The whole stack on a world of a million items: how long it takes to start, what it holds, how fast it answers.

    python -m benchmarks.serving.million --size small --work work/serving --out work/serving/million.json

The processes are those of `pinrec up`, in its order.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from benchmarks.capacity import pids_of
from benchmarks.chaos.fleet import Change, Fleet, as_they_are, running
from benchmarks.chaos.parts import pss_mb_of
from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, fresh
from benchmarks.serving.alone import PRECISION
from benchmarks.serving.subjects import channel, gateway_send
from benchmarks.serving.timing import median, shown
from benchmarks.serving.workload import is_full
from benchmarks.serving.world import ServingWorld, make_world
from loadtest.open_loop import closed_loop
from services.cli.supervisor import Process

CALLERS = (1, 2, 4)
FIRST, COLD, WARM = "first", "cold", "warm"
"""Starts: the batch view is compiled; release and view are read from the disk; they lie in the page cache, where the
copy of the release and the start before have left them."""
STATED = "stated"


@dataclass(frozen=True)
class Size:
    """`rounds` of `seconds` for each number of callers, in turn; `starts` of each kind but the first."""

    scale: str
    rounds: int
    seconds: float
    starts: int


SIZES = {
    "full": Size("1m", rounds=5, seconds=8.0, starts=3),
    "small": Size("10k", rounds=3, seconds=4.0, starts=2),
    "smoke": Size("smoke", rounds=1, seconds=1.0, starts=1),
}


@dataclass(frozen=True)
class Served(World):
    """A world whose batch views lie elsewhere."""

    views: Path

    @property
    def batch_views(self) -> Path:
        """What the signal service follows."""
        return self.views


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for worlds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON of the rows.")
def main(size: str, work: Path, out: Path) -> None:
    """Start the stack as often as the size says, ask it, and print the rows."""
    plan = SIZES[size]
    if not ServingWorld(plan.scale, work).queries.exists():  # in a process of its own: it takes torch, Faiss and memory
        made_by = [sys.executable, "-m", "benchmarks.serving.world", "--work", str(work), "--scale", plan.scale]
        subprocess.run(made_by, check=True)
    world = make_world(work, plan.scale)
    rows = [show(row) for row in measured(world, plan, fresh(work / "million"))]
    save(rows, out, f"python -m benchmarks.serving.million --size {size}")
    finish(rows)


def measured(world: ServingWorld, plan: Size, folder: Path) -> Iterator[Row]:
    """Every row, as soon as it is known."""
    yield sizes_row(world)
    yield job_row("the batch view is made from the log", BATCH_VIEW, str(world.data), str(folder / "views"))
    yield job_row("the release is held to its checksums", CHECKSUMS, str(world.releases))
    served = Served(world.work / world.scale, folder / "views")
    starts: dict[str, list[dict[str, float]]] = {FIRST: [], COLD: [], WARM: []}
    kinds = [FIRST, *(COLD, WARM) * plan.starts]
    for place, kind in enumerate(kinds):
        with running(served, folder / "fleet", forgetting(served) if kind == COLD else as_they_are) as fleet:
            starts[kind].append({name: part.startup_s for name, part in fleet.parts.items()})
            if place == len(kinds) - 1:
                idle = memory_mb(fleet)
                latencies = asyncio.run(latencies_ms(fleet, world, plan))
                yield from (start_row(kind, several) for kind, several in starts.items())
                yield memory_row("memory (PSS) when it has started", idle)
                yield memory_row("memory (PSS) after the calls below", memory_mb(fleet))
                yield from (latency_row(callers, several) for callers, several in latencies.items())


def sizes_row(world: ServingWorld) -> Row:
    """What is served, in numbers and bytes."""
    release, megabytes = world.release(), {}
    for path in release.path.rglob("*"):
        if path.is_file():
            part = path.relative_to(release.path).parts[0]
            megabytes[part] = megabytes.get(part, 0.0) + path.stat().st_size / 1e6
    parts = ", ".join(f"{part} {mb:.0f}" for part, mb in sorted(megabytes.items(), key=lambda one: -one[1]) if mb >= 1)
    spec = world.spec
    measured = (
        f"{spec.items:,} items, {spec.users:,} users, {spec.events:,} events; release of {sum(megabytes.values()):.0f} "
        f"MB: {parts}; the decoder in {os.environ.get(PRECISION) or 'its default precision'}"
    )
    return Row("what is served", STATED, measured, None, {"release_mb": megabytes, "spec": vars(spec)})


BATCH_VIEW = """
from pinrec_core.batch_job.job import build_batch_view
build_batch_view(Path(sys.argv[1]), Path(sys.argv[2]))
"""
CHECKSUMS = """
from pinrec_core.release import open_release
open_release(Path(sys.argv[1]), 1)
"""
_TIMED = """
import json, resource, sys, time
from pathlib import Path
began = time.perf_counter()
{work}
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps(dict(
    seconds=time.perf_counter() - began, cpu_s=used.ru_utime + used.ru_stime, peak_mb=used.ru_maxrss / 1000
)))
"""


def job_row(what: str, work: str, *arguments: str) -> Row:
    """Time and peak memory of some work in a process of its own, imports included."""
    line = [sys.executable, "-c", _TIMED.format(work=work), *arguments]
    ended = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(ended.stdout.splitlines()[-1])
    measured = f"{figures['seconds']:.1f} s, {figures['cpu_s']:.1f} s of CPU, {figures['peak_mb']:,.0f} MB at most"
    return Row(what, STATED, measured, None, figures)


def forgetting(served: World) -> Change:
    """Takes what is mapped out of the page cache, before anything starts."""

    def change(folder: Path, processes: list[Process]) -> list[Process]:
        for root in (folder / "releases", served.batch_views):
            for path in root.rglob("*"):
                if path.is_file():
                    forget(path)
        return processes

    return change


def forget(path: Path) -> None:
    """Write a file's pages to the disk and give them back."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


WORDS = {
    FIRST: "the first start, which compiles the batch view",
    COLD: "a start from the disk",
    WARM: "a start from the page cache",
}


def start_row(kind: str, several: Sequence[dict[str, float]]) -> Row:
    """Until each process was ready, one after the other; medians over the starts of a kind."""
    parts = {name: [one[name] for one in several] for name in several[0]}
    totals = [sum(one.values()) for one in several]
    words = ", ".join(f"{name} {median(seconds):.1f}" for name, seconds in parts.items())
    measured = f"{median(totals):.1f} s: {words}" + (f" ({len(several)} starts)" if len(several) > 1 else "")
    return Row(WORDS[kind], STATED, measured, None, {"kind": kind, "startup_s": parts})


def memory_mb(fleet: Fleet) -> dict[str, float]:
    """PSS of each process: a page that several of them map is divided over them."""
    return {name: sum(map(pss_mb_of, pids)) for name, pids in pids_of(fleet).items()}


def memory_row(what: str, pss_mb: dict[str, float]) -> Row:
    """Of each process, the largest first."""
    words = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(pss_mb.items(), key=lambda one: -one[1]))
    return Row(what, STATED, f"{sum(pss_mb.values()):,.0f} MB: {words}", None, {"pss_mb": pss_mb})


Percentiles = dict[str, list[float]]
"""p50_ms, p99_ms and rps (a second) of full answers, and their share of all, one a round."""


async def latencies_ms(fleet: Fleet, world: ServingWorld, plan: Size) -> dict[int, Percentiles]:
    """By number of callers without a pause, in turn; a round of each to warm up does not count."""
    names = ("p50_ms", "p99_ms", "rps", "share")
    found: dict[int, Percentiles] = {callers: {name: [] for name in names} for callers in CALLERS}
    async with channel(fleet.gateway) as to:
        send = gateway_send(to, world.spec.users)

        async def full(number: int) -> bool:
            return is_full(await send(number))

        for round_ in range(-1, plan.rounds):
            for callers, several in found.items():
                calls = await closed_loop(full, callers, plan.seconds)
                answered = [1000 * call.latency_s for call in calls if call.answer]
                if not answered:
                    raise RuntimeError(f"none of {len(calls)} calls was answered in full")
                if round_ >= 0:
                    measured = (*np.percentile(answered, [50, 99]), len(answered) / plan.seconds)
                    for name, value in zip(names, (*measured, len(answered) / len(calls)), strict=True):
                        several[name].append(float(value))
    return found


def latency_row(callers: int, several: Percentiles) -> Row:
    """Medians over the rounds, with their spread. More callers than the machine has room for are refused in part."""
    who = "one caller" if callers == 1 else f"{callers} callers"
    p50, p99, rps = shown(several["p50_ms"]), shown(several["p99_ms"]), median(several["rps"])
    share = median(several["share"])
    measured = f"p50 {p50}, p99 {p99}, {rps:.1f} answers/s, {share:.1%} answered in full"
    bar, met = ("all answered in full", share == 1.0) if callers == 1 else (STATED, None)
    return Row(f"GetCandidates, {who} without a pause", bar, measured, met, {"callers": callers, **several})


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.million")
