"""The stack under load: callers without a pause, arrivals that do not wait, and the naive service under the same."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.capacity import cpu_seconds
from benchmarks.chaos.table import Row
from benchmarks.serving import stack_rows as rows
from benchmarks.serving.alone import Timed
from benchmarks.serving.memory import Memory
from benchmarks.serving.simulated_queue import ServiceTimes, simulate
from benchmarks.serving.stack_plan import CORES, MANY, STAGE_NAMES, Plan
from benchmarks.serving.stack_rows import Loop, Open
from benchmarks.serving.subjects import GATEWAY, NAIVES, TRITON, Send, Subjects
from benchmarks.serving.timing import median
from benchmarks.serving.triton_counts import mean_batches, read_counts
from benchmarks.serving.workload import is_full
from loadtest.open_loop import Call, arrivals, closed_loop, open_loop
from pinrec_core.serving.contract import MAX_BATCH_SIZE

NAIVE_CALLERS = (1, 4)
BATCHES = (1, 2, 4, 8, 16, 32)
WAITED_FOR = ("generate", "retrieve")
"""Stages that take longer than the gap between two requests."""
SHARES = (0.25, 0.5, 0.7, 0.9)
"""Of the capacity: rates of the open loop."""
JUDGED_SHARE = 0.7
OWN_CORES, SHARED_CORES = "a core for each stage", f"stages share {CORES} cores"
QUEUES = {OWN_CORES: float(len(STAGE_NAMES)), SHARED_CORES: float(CORES)}
"""Cores by how a simulated queue has them."""
QUEUE_REQUESTS = 50_000
SETTLE_S = 0.3
"""Between turns."""


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
    cpu_ms = {process: 1000 * (used[process] - cpu[process]) / max(1, len(answered)) for process in used}
    return Loop(
        callers=callers,
        rps=len(answered) / elapsed,
        latencies_ms=answered,
        not_full=len(calls) - len(answered),
        cpu_ms={} if name in NAIVES else cpu_ms,
        batches={} if name in NAIVES else {stage: batches[stage] for stage in STAGE_NAMES if stage in batches},
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
        rows.batches_row(ours[MANY], STAGE_NAMES, WAITED_FOR),
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
    """Its capacity, the latency of the better of the two at shares of that, and the bar."""
    levels: dict[str, Levels] = {name: {callers: [] for callers in NAIVE_CALLERS} for name in NAIVES}
    for _ in range(plan.loop_rounds):
        for name, by_callers in levels.items():
            for callers, loops in by_callers.items():
                loops.append(await callers_loop(found, name, callers, plan.loop_s))
    best = max(levels, key=lambda name: best_rps(levels[name]))
    naive = await at_rates(found, best, best_rps(levels[best]), plan, None)
    return [
        *(rows.loop_row(name, loops) for name, by_callers in levels.items() for loops in by_callers.values()),
        *(rows.open_row(best, one) for one in naive),
        rows.naive_row(ours, naive),
    ]
