"""The whole stack beside its floors: hops, throughput, open loop, a simulated queue, and the service without a stack.

    python -m benchmarks.serving.stack --size small --work work/serving --out stack.json

Everything runs side by side on this machine, callers included, and takes turns: what is compared was measured within
the same seconds. A stage's own compute is told twice: as the stage says it in the answer to the same call, and as it
takes in a process of its own with the same threads.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import uvloop

from benchmarks.capacity import cpu_seconds, pids_of
from benchmarks.chaos.parts import pss_mb_of
from benchmarks.chaos.table import Row, save, show
from benchmarks.serving import stack_rows as rows
from benchmarks.serving.alone import PATH, Timed
from benchmarks.serving.empty_repository import VARIANTS, bytes_between_stages
from benchmarks.serving.recorded import inputs_of
from benchmarks.serving.simulated_queue import ServiceTimes, simulate
from benchmarks.serving.stack_rows import Lone, Loop, Open
from benchmarks.serving.subjects import GATEWAY, NAIVE, NOOP, TRITON, Send, Subjects, subjects
from benchmarks.serving.timing import median, shown, shown_ratio
from benchmarks.serving.triton_counts import mean_batches, read_counts
from benchmarks.serving.wire import ensemble_bytes
from benchmarks.serving.workload import is_full, request_of, resolved, stage_ms
from benchmarks.serving.world import make_world
from loadtest.open_loop import Call, arrivals, closed_loop, open_loop
from pinrec_core.serving.contract import MAX_BATCH_SIZE, STAGES

STAGE_NAMES = tuple(stage.name for stage in STAGES)
CALLERS = (1, 4, 16, 32, 64)
MANY = 32
"""Callers whose batches, CPU and memory are looked at."""
BATCHES = (1, 2, 4, 8, 16, 32)
SHARES = (0.25, 0.5, 0.7, 0.9)
"""Of the capacity: rates of the open loop."""
JUDGED_SHARE = 0.7
LONE_CALL_SHARE = {NOOP: 0.3, **{variant.name: 0.5 for variant in VARIANTS}}
"""Of a turn's seconds, for what takes far less than the path."""
CORES = len(os.sched_getaffinity(0))
OWN_CORES, SHARED_CORES = "a core for each stage", f"stages share {CORES} cores"
QUEUES = {OWN_CORES: float(len(STAGES)), SHARED_CORES: float(CORES)}
"""Cores by how a simulated queue has them."""
QUEUE_REQUESTS = 50_000
SETTLE_S = 0.3
"""Between turns."""


@dataclass(frozen=True)
class Plan:
    """How long everything is looked at. Seconds are of one turn."""

    scale: str
    lone_rounds: int
    lone_s: float
    loop_rounds: int
    batch_s: float
    loop_s: float
    open_rounds: int
    open_s: float
    callers: Sequence[int] = CALLERS


PLANS = {
    "full": Plan("100k", 7, 1.5, loop_rounds=3, batch_s=0.5, loop_s=4, open_rounds=2, open_s=20),
    "small": Plan("10k", 3, 1.0, loop_rounds=2, batch_s=0.3, loop_s=2, open_rounds=1, open_s=10),
    "smoke": Plan("smoke", 2, 0.2, loop_rounds=1, batch_s=0.05, loop_s=0.5, open_rounds=1, open_s=1, callers=(1, 32)),
}


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(PLANS)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of worlds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file for the rows.")
def main(size: str, work: Path, out: Path) -> None:
    """Measure and print."""
    plan = PLANS[size]
    save(uvloop.run(measure(plan, work)), out, f"python -m benchmarks.serving.stack --size {size}")


async def measure(plan: Plan, work: Path) -> list[Row]:
    """All of it, in one run."""
    world = make_world(work, plan.scale)
    async with subjects(world, work / "stack") as found:
        memory = Memory(found)
        lone = await one_at_a_time(found, plan)
        shown_rows = [show(row) for row in lone_rows(lone)]
        levels, batched = await without_pause(found, plan, memory)
        shown_rows += [show(row) for row in loop_rows(levels, batched)]
        capacity = best_rps(levels[GATEWAY])
        ours = await at_rates(found, GATEWAY, capacity, plan, batched)
        shown_rows += [show(row) for row in open_rows(ours)]
        shown_rows += [show(row) for row in await naive_rows(found, plan, ours)]
        shown_rows += [show(row) for row in await cost_rows(found, lone, levels[GATEWAY][MANY], memory)]
    return shown_rows


# --- one call at a time ---


async def one_at_a_time(found: Subjects, plan: Plan) -> Lone:
    """A turn for each subject in each round; stages and the path in their own processes under their own names."""
    ms: dict[str, list[list[float]]] = {}
    own_ms: dict[str, list[list[Mapping[str, float]]]] = {GATEWAY: [], TRITON: []}
    for round_ in range(-1, plan.lone_rounds):  # the first does not count
        for name, send in found.sends.items():
            calls = await lone_calls(send, plan.lone_s * LONE_CALL_SHARE.get(name, 1.0), first=100 * round_ + 100)
            if round_ < 0:
                continue
            ms.setdefault(name, []).append([call_ms for call_ms, _ in calls])
            if name in own_ms:
                own_ms[name].append([stage_ms(answer) for _, answer in calls])
        for name, process in found.alone.items():
            timed = process.time(1, plan.lone_s * (1.0 if name == PATH else 0.5))
            if round_ >= 0:
                ms.setdefault(name, []).append([1000 * call for call in timed.calls_s])
    return Lone(ms, own_ms)


async def lone_calls(send: Send, seconds: float, first: int) -> list[tuple[float, Any]]:
    """Milliseconds and answer of each call, the first left out: its connection and pages were cold."""
    await send(first)
    end, calls = time.perf_counter() + seconds, []
    while not calls or time.perf_counter() < end:
        began = time.perf_counter()
        answer = await send(first + 1 + len(calls))
        calls.append((1000 * (time.perf_counter() - began), answer))
    return calls


def lone_rows(lone: Lone) -> list[Row]:
    """Floors, stages, the path in one process, and what each hop adds."""
    sums = [sum(one) for one in zip(*(lone.medians(stage) for stage in STAGE_NAMES), strict=True)]
    found = [lone_row(NOOP, "a gRPC server that answers with the bytes of a real answer", lone)]
    found += [lone_row(VARIANTS[0].name, "empty ensemble of four steps, tensors as in the real one", lone)]
    for stage in STAGE_NAMES:
        inside = lone.stage_medians(GATEWAY, stage)
        measured = f"{shown(inside)} inside the stack; {shown(lone.medians(stage))} in a process of its own"
        figures = {"kind": "stage", "stage": stage, "inside_ms": inside, "alone_ms": lone.medians(stage)}
        found.append(Row(f"stage {stage}, one request at a time", "-", measured, None, figures))
    found += [
        lone_row(PATH, "recommend.py: the path in one process (torch and Faiss in one: two OpenMP runtimes)", lone),
        rows.overhead_row(lone, TRITON, sums, is_bar=False),
        rows.overhead_row(lone, GATEWAY, sums, is_bar=True),
        hop_row(lone),
        lone_row(GATEWAY, "gateway", lone),
        lone_row(NAIVE, "naive service", lone),
    ]
    return found


def lone_row(subject: str, what: str, lone: Lone) -> Row:
    """One subject."""
    together = rows.percentiles([ms for calls in lone.ms[subject] for ms in calls])
    medians = lone.medians(subject)
    figures = {"kind": "lone", "subject": subject, "median_ms": medians, **together}
    return Row(f"{what}, one call at a time", "-", f"{shown(medians)}; {rows.said(together)}", None, figures)


def hop_row(lone: Lone) -> Row:
    """Where the time of a lone call goes, and Triton's part beside an ensemble that does nothing."""
    empty, noop = lone.medians(VARIANTS[0].name), lone.medians(NOOP)
    triton, gateway = lone.medians(TRITON), lone.medians(GATEWAY)
    hops, own = lone.added(TRITON), lone.own_sums(GATEWAY)
    by_gateway = [ours - theirs for ours, theirs in zip(gateway, triton, strict=True)]
    of_empty = rows.ratio_of(hops, empty)
    measured = (
        f"Triton and its four hops {shown(hops)}, {shown_ratio(of_empty)} of an empty ensemble's {shown(empty)}; "
        f"gateway and its hop {shown(by_gateway)} (medians of two kinds of calls: it may be below zero), a no-op call "
        f"{shown(noop)}"
    )
    figures = {"kind": "hops", "hops_ms": hops, "gateway_ms": by_gateway, "noop_ms": noop, "empty_ms": empty}
    figures |= {"stages_ms": own, "of_empty": of_empty}
    return Row("what is added to the stages, hop by hop", "-", measured, None, figures)


# --- batches of a stage alone ---


@dataclass
class Batched:
    """Each stage alone in batches: by stage and size, what was timed, one a round."""

    timed: dict[str, dict[int, list[Timed]]] = field(default_factory=dict)

    def service_times(self) -> list[ServiceTimes]:
        """Of the stages in order, all rounds together."""
        together = [
            {size: [call_s for timed in each for call_s in timed.calls_s] for size, each in sizes.items()}
            for sizes in self.timed.values()
        ]
        return [ServiceTimes(measured, MAX_BATCH_SIZE) for measured in together]

    def largest(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds of a full batch and CPU seconds of one request in it, by stage, one a round."""
        full = {stage: sizes[MAX_BATCH_SIZE] for stage, sizes in self.timed.items()}
        seconds = {stage: [median(one.calls_s) for one in each] for stage, each in full.items()}
        return seconds, {stage: [one.cpu_s for one in each] for stage, each in full.items()}

    def time(self, found: Subjects, seconds: float) -> None:
        """One more round, while nothing else works."""
        for stage in STAGE_NAMES:
            for size in BATCHES:
                timed = found.alone[stage].time(size, seconds)
                self.timed.setdefault(stage, {}).setdefault(size, []).append(timed)


# --- callers without a pause ---


Levels = dict[int, list[Loop]]
"""Rounds by the number of callers."""


async def without_pause(found: Subjects, plan: Plan, memory: Memory) -> tuple[dict[str, Levels], Batched]:
    """In each round: every stage alone in batches, then each number of callers on the ensemble and on the gateway."""
    levels: dict[str, Levels] = {name: {callers: [] for callers in plan.callers} for name in (TRITON, GATEWAY)}
    batched = Batched()
    await callers_loop(found, TRITON, MANY, plan.loop_s)  # a warm-up
    for _ in range(plan.loop_rounds):
        batched.time(found, plan.batch_s)
        for callers in plan.callers:
            for name in levels:
                levels[name][callers].append(await callers_loop(found, name, callers, plan.loop_s))
                memory.look()
    return levels, batched


async def callers_loop(found: Subjects, name: str, callers: int, seconds: float) -> Loop:
    """One number of callers for some seconds: answers a second, latencies, CPU and batches."""
    await asyncio.sleep(SETTLE_S)
    counts, cpu = read_counts(found.triton_metrics), {**cpu_seconds(found.fleet), "callers": time.process_time()}
    began = time.monotonic()
    calls = await closed_loop(judged(found.sends[name]), callers, seconds)
    elapsed = time.monotonic() - began
    used = {**cpu_seconds(found.fleet), "callers": time.process_time()}
    batches = mean_batches(counts, read_counts(found.triton_metrics))
    answered = latencies_ms(calls)
    return Loop(
        callers=callers,
        rps=len(answered) / elapsed,
        latencies_ms=answered,
        not_full=len(calls) - len(answered),
        cpu_ms={process: 1000 * (used[process] - cpu[process]) / max(1, len(answered)) for process in used},
        batches={stage: batches[stage] for stage in STAGE_NAMES if stage in batches},
    )


def judged(send: Send) -> Send:
    """The same call, of whose answer only is kept whether it is a full one."""

    async def sent(number: int) -> bool:
        return is_full(await send(number))

    return sent


def latencies_ms(calls: Sequence[Call]) -> list[float]:
    """From the scheduled time to the answer, of the calls that were answered in full."""
    return [1000 * call.latency_s for call in calls if call.answer]


def best_rps(levels: Levels) -> float:
    """Answers a second of the number of callers that gets most."""
    return median([loop.rps for loop in levels[rows.best_level(levels)]])


def loop_rows(levels: Mapping[str, Levels], batched: Batched) -> list[Row]:
    """Every number of callers, and the bars on throughput and batches."""
    found = [rows.loop_row(name, loops) for name, each in levels.items() for loops in each.values()]
    ours = levels[GATEWAY]
    best = rows.best_level(ours)
    resources = rows.resources(*batched.largest(), MAX_BATCH_SIZE, CORES)
    return [
        *found,
        rows.saturation_row([loop.rps for loop in ours[best]], best, resources),
        rows.growth_row(ours[1], ours[MANY]),
        rows.batches_row(ours[MANY], STAGE_NAMES),
    ]


# --- arrivals that do not wait ---


async def at_rates(found: Subjects, name: str, capacity: float, plan: Plan, batched: Batched | None) -> list[Open]:
    """Poisson arrivals at shares of a capacity, in turn, and what a simulated queue makes of such arrivals."""
    calls: dict[float, list[Call]] = {share: [] for share in SHARES}
    send = judged(found.sends[name])
    for round_ in range(plan.open_rounds):
        for share in SHARES:
            await asyncio.sleep(SETTLE_S)
            calls[share] += await open_loop(send, share * capacity, plan.open_s, seed=round_)
    seconds = plan.open_rounds * plan.open_s
    return [opened(share, share * capacity, each, seconds, batched) for share, each in calls.items()]


def opened(share: float, rate: float, calls: Sequence[Call], seconds: float, batched: Batched | None) -> Open:
    """What became of the calls of one rate."""
    answered = latencies_ms(calls)
    return Open(
        share=share,
        sent_rps=len(calls) / seconds,
        full_rps=len(answered) / seconds,
        latencies_ms=answered,
        not_full=len(calls) - len(answered),
        queue_ms={} if batched is None else queues(rate, batched),
    )


def queues(rate: float, batched: Batched) -> dict[str, list[float]]:
    """Latencies in milliseconds of the simulated queues at a rate."""
    came = arrivals(rate, QUEUE_REQUESTS / rate, seed=1)
    stages = batched.service_times()
    return {name: (1000 * simulate(came, stages, cores)).tolist() for name, cores in QUEUES.items()}


def open_rows(ours: Sequence[Open]) -> list[Row]:
    """Each rate, and the bar on p99."""
    [judged_one] = [one for one in ours if one.share == JUDGED_SHARE]
    return [*(rows.open_row(GATEWAY, one) for one in ours), rows.queue_row(judged_one, SHARED_CORES)]


# --- the naive service ---


async def naive_rows(found: Subjects, plan: Plan, ours: Sequence[Open]) -> list[Row]:
    """Its capacity, its latency at shares of that, and the bar."""
    levels: Levels = {callers: [] for callers in (1, 4)}
    for _ in range(plan.loop_rounds):
        for callers, loops in levels.items():
            loops.append(await callers_loop(found, NAIVE, callers, plan.loop_s))
    naive = await at_rates(found, NAIVE, best_rps(levels), plan, None)
    found_rows = [rows.loop_row(NAIVE, loops) for loops in levels.values()]
    return [*found_rows, *(rows.open_row(NAIVE, one) for one in naive), rows.naive_row(ours, naive)]


# --- what a request costs ---


class Memory:
    """Peak PSS of each process, looked at whenever asked to."""

    def __init__(self, found: Subjects) -> None:
        self._found = found
        self.peaks_mb: dict[str, float] = {}

    def look(self) -> None:
        """Once more."""
        for name, pids in pids_of(self._found.fleet).items():
            self.peaks_mb[name] = max(self.peaks_mb.get(name, 0.0), sum(map(pss_mb_of, pids)))


async def cost_rows(found: Subjects, lone: Lone, many: Sequence[Loop], memory: Memory) -> list[Row]:
    """CPU, memory, bytes."""
    stack, world = found.fleet.stack, found.world
    address = f"{stack.host}:{stack.triton_grpc_port}"
    asked, answered = await ensemble_bytes(address, resolved(0, world.spec.users, world.release()))
    recorded = {stage: inputs_of(found.messages, stage) for stage in STAGE_NAMES}
    between = {variant.name: bytes_between_stages(variant, recorded) for variant in VARIANTS}
    sizes = {
        "to the gateway": float(request_of(0, world.spec.users).ByteSize()),
        "from the gateway": float(found.answer_bytes),
        "to Triton": float(asked),
        "from Triton": float(answered),
        "into the stages": between[VARIANTS[0].name],
    }
    int8, float32, int8_wide, float32_wide = (variant.name for variant in VARIANTS)
    return [
        rows.cpu_row(many),
        rows.memory_row(memory.peaks_mb),
        rows.bytes_row(sizes),
        *(
            rows.transport_row(what, lone.medians(one), lone.medians(other), between[one], between[other])
            for what, one, other in (
                (f"content of {world.release().content_dim}", int8, float32),
                (f"content of {VARIANTS[2].content_dim}", int8_wide, float32_wide),
            )
        ),
    ]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.stack")
