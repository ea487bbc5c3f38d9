"""One call at a time: floors, stages, the path in one process, and what each hop of the stack adds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from benchmarks.chaos.table import Row
from benchmarks.serving import stack_rows as rows
from benchmarks.serving.alone import PATH
from benchmarks.serving.empty_repository import VARIANTS
from benchmarks.serving.stack_plan import STAGE_NAMES, Plan
from benchmarks.serving.stack_rows import Lone
from benchmarks.serving.subjects import GATEWAY, NAIVES, NOOP, TRITON, Send, Subjects
from benchmarks.serving.timing import shown, shown_ratio
from benchmarks.serving.workload import stage_ms

COLD = "empty, cold"
"""An empty ensemble whose caches the decoder has just emptied, as they are between the calls of the real one."""
SHARE_OF_TURN = {NOOP: 0.3, **{variant.name: 0.5 for variant in VARIANTS}}
"""Of a turn's seconds, for what takes far less than the path."""


async def one_at_a_time(found: Subjects, plan: Plan) -> Lone:
    """A turn for each subject in each round; stages and the path in their own processes under their own names."""
    ms: dict[str, list[list[float]]] = {}
    own_ms: dict[str, list[list[Mapping[str, float]]]] = {GATEWAY: [], TRITON: []}
    for round_ in range(-1, plan.lone_rounds):  # the first does not count
        for name, send in found.sends.items():
            calls = await lone_calls(send, plan.lone_s * SHARE_OF_TURN.get(name, 1.0), first=100 * round_ + 100)
            if round_ < 0:
                continue
            ms.setdefault(name, []).append([call_ms for call_ms, _ in calls])
            if name in own_ms:
                own_ms[name].append([stage_ms(answer) for _, answer in calls])
        cold = [await cold_call(found, number) for number in range(plan.cold_calls)]
        if round_ >= 0:
            ms.setdefault(COLD, []).append(cold)
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


async def cold_call(found: Subjects, number: int) -> float:
    """Milliseconds of an empty ensemble's call after some of the decoder's."""
    found.alone["generate"].time(1, 0.0)
    began = time.perf_counter()
    await found.sends[VARIANTS[0].name](number)
    return 1000 * (time.perf_counter() - began)


def lone_rows(lone: Lone) -> list[Row]:
    """Floors, stages, the path in one process, and what each hop adds."""
    sums = [sum(one) for one in zip(*(lone.medians(stage) for stage in STAGE_NAMES), strict=True)]
    found = [lone_row(NOOP, "a gRPC server that answers with the bytes of a real answer", lone)]
    found += [lone_row(VARIANTS[0].name, "empty ensemble of four steps, tensors as in the real one", lone)]
    found += [lone_row(COLD, "the same after the decoder has worked elsewhere: cold caches", lone)]
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
        *(lone_row(name, name, lone) for name in NAIVES),
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
    empty, noop = lone.medians(COLD), lone.medians(NOOP)
    triton, gateway = lone.medians(TRITON), lone.medians(GATEWAY)
    hops, own = lone.added(TRITON), lone.own_sums(GATEWAY)
    by_gateway = [ours - theirs for ours, theirs in zip(gateway, triton, strict=True)]
    of_empty = rows.ratio_of(hops, empty)
    measured = (
        f"Triton and its four hops {shown(hops)}, {shown_ratio(of_empty)} of a cold empty ensemble's {shown(empty)}; "
        f"gateway and its hop {shown(by_gateway)} (medians of two kinds of calls: it may be below zero), a no-op call "
        f"{shown(noop)}"
    )
    figures = {"kind": "hops", "hops_ms": hops, "gateway_ms": by_gateway, "noop_ms": noop, "empty_ms": empty}
    figures |= {"stages_ms": own, "of_empty": of_empty}
    return Row("what is added to the stages, hop by hop", "-", measured, None, figures)
