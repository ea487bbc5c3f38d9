"""From what was measured of the stack to rows with bars: numbers in, no clock, no process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.chaos.table import Row
from benchmarks.serving.timing import median, shown, shown_ratio, spread

MOST_RATIO, MOST_ADDED_MS = 1.5, 4.0
LEAST_OF_SLOWEST = 0.7
MOST_P99_OF_QUEUE = 1.2
LEAST_BATCH = 4.0
LEAST_OF_NAIVE, NAIVE_P99_MS = 3.0, 100.0
PERCENTS = (50.0, 90.0, 99.0, 99.9)

Rounds = Sequence[float]
"""One figure a round."""


def ratio_of(these: Rounds, those: Rounds) -> tuple[float, float, float]:
    """Median, 10th and 90th percentile of the ratios of two things measured in the same rounds."""
    ratios = [this / that for this, that in zip(these, those, strict=True)]
    return (median(ratios), *spread(ratios))


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """The `PERCENTS` by name; none without latencies."""
    if not latencies_ms:
        return {}
    return {f"p{percent:g}": float(np.percentile(latencies_ms, percent)) for percent in PERCENTS}


def said(values: Mapping[str, float]) -> str:
    """Percentiles as a phrase."""
    return ", ".join(f"{name} {value:.1f}" for name, value in values.items()) + " ms" if values else "no answer"


# --- one at a time ---


@dataclass(frozen=True)
class Lone:
    """One call at a time. `ms`: of each subject, a list a round. `own_ms`: what the stages said of the same calls."""

    ms: Mapping[str, list[list[float]]]
    own_ms: Mapping[str, list[list[Mapping[str, float]]]]

    def medians(self, subject: str) -> list[float]:
        """Of a subject, one a round."""
        return [median(calls) for calls in self.ms[subject]]

    def own_sums(self, subject: str) -> list[float]:
        """Medians of what all stages took together, one a round."""
        return [median([sum(stages.values()) for stages in calls]) for calls in self.own_ms[subject]]

    def added(self, subject: str) -> list[float]:
        """Medians of what a call took on top of its own stages, one a round."""
        return [
            median([ms - sum(stages.values()) for ms, stages in zip(calls, owns, strict=True)])
            for calls, owns in zip(self.ms[subject], self.own_ms[subject], strict=True)
        ]

    def stage_medians(self, subject: str, stage: str) -> list[float]:
        """Of one stage as it said itself, one a round."""
        return [median([stages[stage] for stages in calls]) for calls in self.own_ms[subject]]


def overhead_row(lone: Lone, subject: str, alone: Rounds, is_bar: bool) -> Row:
    """What a subject adds to its stages: to what they say of the same calls, and to their processes alone."""
    added, own = lone.added(subject), lone.own_sums(subject)
    of_own, of_alone = ratio_of(lone.medians(subject), own), ratio_of(lone.medians(subject), alone)
    met = of_own[0] <= MOST_RATIO and median(added) <= MOST_ADDED_MS
    figures = {"own_ms": own, "alone_ms": list(alone), "added_ms": added, "of_own": of_own, "of_alone": of_alone}
    return Row(
        f"{subject}, one call at a time, p50 / sum of the stages' own compute",
        f"at most {MOST_RATIO} and {MOST_ADDED_MS:.0f} ms on top" if is_bar else "-",
        f"{shown_ratio(of_own)}, {shown(added)} on top of the {shown(own)} that the stages of the same calls took; "
        f"{shown_ratio(of_alone)} of the {shown(list(alone))} that they take in processes of their own",
        met if is_bar else None,
        figures,
    )


# --- callers without a pause ---


@dataclass(frozen=True)
class Loop:
    """A round of callers without a pause. `cpu_ms` by process and `batches` by model where they were looked at."""

    callers: int
    rps: float
    latencies_ms: list[float]
    not_full: int
    cpu_ms: Mapping[str, float]
    batches: Mapping[str, float]


def loop_row(subject: str, loops: Sequence[Loop]) -> Row:
    """One number of callers, all rounds."""
    together = percentiles([ms for loop in loops for ms in loop.latencies_ms])
    rates = [loop.rps for loop in loops]
    low, high = spread(rates)
    not_full = sum(loop.not_full for loop in loops)
    refused = f"; {not_full} refused or degraded" if not_full else ""
    figures = {
        "kind": "loop",
        "subject": subject,
        "callers": loops[0].callers,
        "rps": rates,
        "not_full": not_full,
        **together,
    }
    figures |= {"cpu_ms": _mean_of([loop.cpu_ms for loop in loops])}
    figures |= {"batches": _mean_of([loop.batches for loop in loops])}
    measured = f"{median(rates):.1f} answers/s [{low:.1f}, {high:.1f}]; {said(together)}{refused}"
    return Row(f"{subject}, {loops[0].callers} callers without a pause", "-", measured, None, figures)


def best_level(levels: Mapping[int, Sequence[Loop]]) -> int:
    """The number of callers that gets most answers a second."""
    return max(levels, key=lambda callers: median([loop.rps for loop in levels[callers]]))


@dataclass(frozen=True)
class Resource:
    """What could be the slowest: requests a second that it lets through without the stack, one figure a round."""

    name: str
    rps: Rounds


def resources(batch_s: Mapping[str, Rounds], cpu_s: Mapping[str, Rounds], batch: int, cores: int) -> list[Resource]:
    """Each stage alone in full batches, and all cores doing nothing but the stages' own work.

    batch_s: seconds of a batch by stage, one a round; cpu_s: CPU seconds of one request in it.
    """
    each = [Resource(stage, [batch / seconds for seconds in rounds]) for stage, rounds in batch_s.items()]
    together = [cores / sum(rounds) for rounds in zip(*cpu_s.values(), strict=True)]
    return [*each, Resource(f"{cores} cores for all stages", together)]


def saturation_row(rps: Rounds, callers: int, found: Sequence[Resource]) -> Row:
    """Throughput of the gateway against the slowest resource."""
    slowest = min(found, key=lambda resource: median(list(resource.rps)))
    against = ratio_of(rps, slowest.rps)
    others = "; ".join(f"{r.name} {median(list(r.rps)):.0f}/s" for r in found)
    return Row(
        "throughput at saturation / batched throughput of the slowest resource without the stack",
        f"at least {LEAST_OF_SLOWEST}",
        f"{shown_ratio(against)}: {median(list(rps)):.1f} answers/s with {callers} callers, slowest is {slowest.name} "
        f"({others})",
        against[0] >= LEAST_OF_SLOWEST,
        {"kind": "saturation", "ratio": against, "rps": list(rps), "callers": callers, "slowest": slowest.name}
        | {"resources": {r.name: list(r.rps) for r in found}},
    )


def growth_row(few: Sequence[Loop], many: Sequence[Loop]) -> Row:
    """Throughput of many callers against that of one."""
    grown = ratio_of([loop.rps for loop in many], [loop.rps for loop in few])
    what = f"throughput at concurrency {many[0].callers} / at concurrency {few[0].callers}"
    return Row(what, "reported on a CPU", shown_ratio(grown), None, {"ratio": grown})


def batches_row(loops: Sequence[Loop], stages: Sequence[str], waited_for: Sequence[str]) -> Row:
    """Whether batches form, by Triton's own counts.

    Requests gather before a stage that takes longer than the gap between two of them, and only there: the bar is for
    those `waited_for`.
    """
    means = {stage: median([loop.batches[stage] for loop in loops]) for stage in stages}
    return Row(
        f"mean batch of each stage at concurrency {loops[0].callers}, from Triton's statistics",
        f"above {LEAST_BATCH:.0f} where requests wait: {', '.join(waited_for)}",
        ", ".join(f"{stage} {mean:.1f}" for stage, mean in means.items()),
        min(means[stage] for stage in waited_for) > LEAST_BATCH,
        {"batches": means, "rounds": [dict(loop.batches) for loop in loops]},
    )


# --- arrivals that do not wait ---


@dataclass(frozen=True)
class Open:
    """Poisson arrivals, all rounds together. `queue_ms`: the simulated queue's latencies, by how it shares cores."""

    share: float
    """Of the capacity."""
    sent_rps: float
    full_rps: float
    latencies_ms: list[float]
    not_full: int
    queue_ms: Mapping[str, list[float]]


def open_row(subject: str, one: Open) -> Row:
    """One rate of arrivals."""
    found = percentiles(one.latencies_ms)
    refused = f"; {one.not_full} refused or degraded" if one.not_full else ""
    queue = {name: percentiles(ms) for name, ms in one.queue_ms.items()}
    beside = "".join(f"; simulated queue, {name}: {said(values)}" for name, values in queue.items())
    figures = {"kind": "open", "subject": subject, "share": one.share, "sent_rps": one.sent_rps}
    figures |= {"full_rps": one.full_rps, "not_full": one.not_full}
    figures |= {"answers": len(one.latencies_ms), "queue": queue, **found}
    measured = f"{one.sent_rps:.1f} requests/s: {said(found)} from the scheduled send{refused}{beside}"
    return Row(f"{subject}, open loop at {one.share:.0%} of its capacity", "-", measured, None, figures)


def queue_row(one: Open, judged: str) -> Row:
    """The p99 against the simulated queue's."""
    measured = percentiles(one.latencies_ms)["p99"]
    queues = {name: percentiles(ms)["p99"] for name, ms in one.queue_ms.items()}
    ratio = measured / queues[judged]
    others = ", ".join(f"{name} {p99:.1f} ms" for name, p99 in queues.items())
    return Row(
        f"p99, open loop at {one.share:.0%} of the capacity / that of a simulated queue",
        f"at most {MOST_P99_OF_QUEUE}",
        f"{ratio:.2f}: {measured:.1f} ms; queue: {others}; judged by: {judged}",
        ratio <= MOST_P99_OF_QUEUE and not one.not_full,
        {"ratio": ratio, "p99": measured, "queue_p99": queues, "judged": judged, "not_full": one.not_full},
    )


# --- the naive service ---


def rate_at(p99_ms: float, curve: Sequence[tuple[float, float]]) -> float | None:
    """The highest rate whose p99 is at most `p99_ms`, on the line through points (rate, p99); None if none is.

    A p99 counts as at least that of every lower rate: what falls with the load is noise.
    """
    rates, p99s = (np.array(column) for column in zip(*sorted(curve), strict=True))
    p99s = np.maximum.accumulate(p99s)
    if p99s[0] > p99_ms:
        return None
    above = int(np.searchsorted(p99s, p99_ms, side="right"))
    if above == len(p99s):
        return float(rates[-1])
    low, high = p99s[above - 1], p99s[above]
    return float(rates[above - 1] + (rates[above] - rates[above - 1]) * (p99_ms - low) / (high - low))


def naive_row(ours: Sequence[Open], naive: Sequence[Open], limit_ms: float = NAIVE_P99_MS) -> Row:
    """Requests a second at the same p99: 100 ms, or the lowest that both reach at their lowest rates."""
    curves = [[(one.full_rps, percentiles(one.latencies_ms)["p99"]) for one in side] for side in (ours, naive)]
    lowest = max(min(curve)[1] for curve in curves)
    at_ms = max(limit_ms, lowest)
    mine, theirs = (rate_at(at_ms, curve) for curve in curves)
    assert mine
    assert theirs
    reached = "" if at_ms == limit_ms else f" ({limit_ms:.0f} ms is reached by neither or one alone)"
    return Row(
        "requests/s against the naive service (FastAPI, torch and exact Faiss in one process) at equal p99",
        f"at least {LEAST_OF_NAIVE:.0f}x at p99 <= {limit_ms:.0f} ms",
        f"{mine / theirs:.2f}x at p99 <= {at_ms:.0f} ms{reached}: {mine:.1f} against {theirs:.1f} requests/s",
        mine / theirs >= LEAST_OF_NAIVE,
        {"ratio": mine / theirs, "p99_ms": at_ms, "ours": curves[0], "naive": curves[1]},
    )


# --- what a request costs ---


def cpu_row(loops: Sequence[Loop]) -> Row:
    """CPU of each process for one request."""
    cpu_ms = _mean_of([loop.cpu_ms for loop in loops])
    words = ", ".join(f"{name} {ms:.2f}" for name, ms in sorted(cpu_ms.items(), key=lambda item: -item[1]))
    what = f"CPU of one request at concurrency {loops[0].callers}"
    return Row(what, "-", f"{sum(cpu_ms.values()):.2f} ms: {words}", None, {"cpu_ms": cpu_ms})


def memory_row(peaks_mb: Mapping[str, float]) -> Row:
    """Peak memory of each process."""
    words = ", ".join(f"{name} {mb:.0f}" for name, mb in sorted(peaks_mb.items(), key=lambda item: -item[1]))
    what = "peak memory of each process under load (PSS: shared pages are divided)"
    return Row(what, "-", f"{sum(peaks_mb.values()):.0f} MB: {words}", None, {"pss_mb": dict(peaks_mb)})


def bytes_row(sizes: Mapping[str, float]) -> Row:
    """Bytes of one request on each way."""
    words = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items())
    return Row("bytes of one request", "-", words, None, {"bytes": dict(sizes)})


def transport_row(what: str, packed_ms: Rounds, float32_ms: Rounds, packed: float, float32: float) -> Row:
    """INT8 rows against float32 between the steps of an ensemble that does nothing else."""
    ratio = ratio_of(packed_ms, float32_ms)
    return Row(
        f"empty ensemble, INT8 / float32 between the stages, {what}",
        "-",
        f"{shown_ratio(ratio)} of the time: {shown(list(packed_ms))} against {shown(list(float32_ms))}; "
        f"{packed / float32:.2f} of the bytes: {packed:,.0f} against {float32:,.0f}",
        None,
        {"ratio": ratio, "int8_ms": list(packed_ms), "float32_ms": list(float32_ms), "bytes": [packed, float32]},
    )


def _mean_of(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names: dict[str, Any] = {name: None for one in several for name in one}
    return {name: float(np.mean([one[name] for one in several if name in one])) for name in names}
