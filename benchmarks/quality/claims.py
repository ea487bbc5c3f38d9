"""Which claims hold: each bar beside what was measured, judged by the interval and not by the mean alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.quality.gathered import Gathered, many
from benchmarks.quality.latency import Latency
from benchmarks.quality.matrix import (
    BEAUTY,
    CLAIMED_ABLATION,
    CONTENT_ALONE,
    FIGURE5_TOTAL,
    HEADLINE,
    LONGER,
    OUTCOMES,
    PEERS,
    PUBLISHED,
    RETAILROCKET,
    STORED,
    Reading,
    headline,
)
from pinrec_core.eval.bootstrap import Interval
from pinrec_core.eval.report import Cell, Gain, shown
from pinrec_core.eval.sections import Arm, Claim, OutcomeMatrix

LARGEST_SURFACES = 3
BEAUTY_READING = headline(BEAUTY)


def judge(
    found: Gathered,
    latencies: list[Latency],
    speed: Mapping[str, Any],
    coverage: tuple[Interval, int] | None,
    older: Interval | None = None,
) -> list[Claim]:
    """Every bar; what was not run has no verdict. `coverage` (with its seeds), `older`: mt_oc / oc, the recency bias.

    `older` is by how much more mt_oc finds of older interests than of all others.
    """
    return [
        sasrec_gate(found),
        *strongest_peer(found),
        *table1(found),
        *table1(found, "longer", f", {LONGER:g} times the steps"),
        figure4(found, "headline", HEADLINE),
        figure4(found, "longer", HEADLINE, f", {LONGER:g} times the steps"),
        figure4(found, "retailrocket", RETAILROCKET),
        latency(latencies),
        *figure5(found),
        *recency_bias(found, coverage, older),
        id_embedding(found, "mt_oc", "ablations", CLAIMED_ABLATION),
        id_embedding(found, "uc", "headline", CONTENT_ALONE),
        int8(found),
        training_speed(speed),
    ]


def ratio(a: Arm | None, b: Arm | None) -> Interval | None:
    """Any-hit recall of a / b over all users; None if an arm is missing."""
    if a is None or b is None:
        return None
    return a.ratio(b, "any_hit")


def surface_ratio(a: Arm | None, b: Arm | None, surface: str) -> Interval | None:
    """The same among the targets on one surface, over the users who have any."""
    if a is None or b is None:
        return None
    return a.surface_ratio(b, surface)


def seeds_of(*arms: Arm | None) -> str:
    """How many seeds each side has, once where all have as many; empty if a side is missing."""
    counts = [len(arm.results) for arm in arms if arm is not None]
    return " / ".join(map(str, dict.fromkeys(counts))) if len(counts) == len(arms) else ""


def _at_least(
    name: str, bar: str, value: Interval | None, least: float, neutral: float, seeds: str = "", note: str = ""
) -> Claim:
    """Holds if the mean reaches `least` and the interval lies above `neutral`, which means no effect.

    No verdict where the reference found nothing, so that the ratio is infinite.
    """
    if value is None or not math.isfinite(value.mean):
        return Claim(name, bar, None, None, "" if value is None else "the reference found nothing")
    cell: Cell = Gain(value) if neutral == 0.0 else value
    return Claim(name, bar, cell, value.mean >= least and value.low > neutral, note, seeds)


def sasrec_gate(found: Gathered) -> Claim:
    """Our SASRec is a strong baseline."""
    ours, theirs = (found.arm("beauty", f"{m}, {STORED}", BEAUTY_READING) for m in ("sasrec", "rectools/sasrec"))
    name, bar = "Our SASRec on Beauty", "R@10 >= .085 and within the interval of RecTools'"
    if ours is None or theirs is None:
        return Claim(name, bar, None if ours is None else ours.on("any_hit"), None)
    own, other = ours.on("any_hit"), theirs.on("any_hit")
    meets = own.high >= other.low
    note = f"RecTools' SASRec: {shown(other)}"
    return Claim(name, bar, own, own.mean >= 0.085 and meets, note, seeds_of(ours, theirs))


def strongest_peer(found: Gathered) -> list[Claim]:
    """PinRec uc with ids and titles against the best RecTools model in R@10 and in NDCG@10."""
    own, rows = f"uc, {STORED}", [*(f"{m}, {STORED}" for m in PEERS), f"{PEERS[0]}, {PUBLISHED}"]
    ours = found.arm("beauty", own, BEAUTY_READING)
    peers = {row: arm for row in rows if (arm := found.arm("beauty", row, BEAUTY_READING))}
    names = ("PinRec uc / the best RecTools model, Beauty R@10", "The same, NDCG@10")
    if ours is None or not peers:
        return [Claim(name, ">= 1", None, None) for name in names]
    best = max(peers, key=lambda row: peers[row].on("any_hit").mean)
    recall = ratio(ours, peers[best])
    assert recall is not None
    ndcg = {row: _mean(found.beside("beauty", row, BEAUTY_READING, "ndcg")) for row in (own, *peers)}
    ahead = max(peers, key=lambda row: ndcg[row])
    best_ndcg, of = f"{ahead}: {ndcg[ahead]:.4f}", seeds_of(ours, peers[ahead])
    peer = f"{best}: {shown(peers[best].on('any_hit'))}"
    if lacking := [row for row in rows if row not in peers and row in found.labels("beauty")]:
        peer += f"; not run: {', '.join(lacking)}"
    return [
        Claim(names[0], ">= 1", recall, recall.mean >= 1.0, peer, seeds_of(ours, peers[best])),
        Claim(names[1], "at least theirs", f"{ndcg[own]:.4f}", ndcg[own] >= ndcg[ahead], best_ndcg, of),
    ]


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def table1(found: Gathered, group: str = "headline", how: str = "") -> list[Claim]:
    """The ratios of the paper's Table 1 in a group of runs; `how` ends the claims' names."""
    base = headline(HEADLINE)
    uc, oc, mt_oc = (found.arm(group, model, base) for model in ("uc", "oc", "mt_oc"))
    of, beside = seeds_of(mt_oc, uc), _one_list_as_long(found, group, mt_oc)
    claims = [
        _at_least(f"MT-OC / UC, KuaiRand{how}", ">= 1.11, clear of 1", ratio(mt_oc, uc), 1.11, 1.0, of, beside),
        *(
            _at_least(f"MT-OC / UC on {name}{how}", ">= 1, clear of 1", surface_ratio(mt_oc, uc, name), 1.0, 1.0, of)
            for name in largest_surfaces(uc)
        ),
        _at_least(f"OC / UC, KuaiRand{how}", ">= 1.01, clear of 1", ratio(oc, uc), 1.01, 1.0, seeds_of(oc, uc)),
    ]
    for model in ("pinnerformer", "pinnerformer_next"):
        for reading in (base, many(HEADLINE)):
            name, other = f"UC / {model}, top {reading.k}{how}", found.arm(group, model, reading)
            value, of = ratio(uc, other), seeds_of(uc, other)
            claims.append(_at_least(name, ">= 1.26, clear of 1", value, 1.26, 1.0, of))
    return claims


def _one_list_as_long(found: Gathered, group: str, mt_oc: Arm | None) -> str:
    """What the ratio does not say: how mt_oc stands to the best one-vector model given as many items."""
    lists = [arm for label in found.labels(group) if (arm := found.arm(group, label, many(HEADLINE)))]
    if mt_oc is None or not lists:
        return ""
    best = max(lists, key=lambda arm: float(arm.values("any_hit").mean()))
    theirs = f"{best.label}, one list of {many(HEADLINE).k}: {shown(best.on('any_hit'))}"
    return f"{shown(mt_oc.on('any_hit'))} of users hit; {theirs}"


def largest_surfaces(arm: Arm | None) -> list[str]:
    """Surfaces with most targets, most first. Most users' first target is on one that the log does not know."""
    if arm is None:
        return []
    targets = arm.results[0].by_target_surface()
    return sorted(targets, key=lambda name: -int(targets[name].sum()))[:LARGEST_SURFACES]


def outcome_matrix(found: Gathered, group: str, world: str, model: str, name: str = "") -> OutcomeMatrix | None:
    """Figure 4 of one model; None if a part is missing. `name` = what the report calls the comparison."""
    base = headline(world)
    desired = {
        wanted: arm
        for wanted in OUTCOMES.get(world, ())
        if (arm := found.arm(group, model, replace(base, conditioning=wanted)))
    }
    plain = found.arm(group, "uc", base)
    if not desired or plain is None:
        return None
    return OutcomeMatrix(f"Figure 4, {model}, {name or world}", world, desired, plain)


def figure4(found: Gathered, group: str, world: str, how: str = "") -> Claim:
    """Every diagonal lift clear of 0, and the largest of its column."""
    name = f"Figure 4 on {world}{how}: asking for an outcome lifts its recall"
    bar = "diagonal clear of 0, the rest of each column below it in the mean"
    matrix = outcome_matrix(found, group, world, "mt_oc")
    names = matrix.outcomes() if matrix is not None else []
    if matrix is None or not names:
        return Claim(name, bar, None, None, "" if matrix is None else "no outcome has enough targets")
    lifts = {outcome: matrix.cell(outcome, outcome) for outcome in names}
    said = "; ".join(f"{outcome} {shown(Gain(lift))}" for outcome, lift in lifts.items())
    others = {(row, column): matrix.against_own(row, column) for row in names for column in names if row != column}
    below = all(other.mean < 1 for other in others.values())
    remark = ""
    if others:
        row, column = max(others, key=lambda pair: others[pair].mean)
        remark = f"{column} targets found, {row} asked for / {column} asked for: {shown(others[row, column])}"
    holds = below and all(lift.low > 0 for lift in lifts.values())
    return Claim(name, bar, said, holds, remark, seeds_of(*matrix.desired.values(), matrix.reference))


def latency(latencies: list[Latency]) -> Claim:
    """Few steps of many embeddings against many of one."""
    name, bar = "Figure 5: latency of 6 x 16 embeddings / 96 x 1", "<= .15"
    medians = {each.offsets_per_step: each.median_ms for each in latencies if each.total == 96}
    if not {1, 16} <= medians.keys():
        return Claim(name, bar, None, None)
    value = medians[16] / medians[1]
    return Claim(name, bar, value, value <= 0.15, f"{medians[16]:.1f} ms against {medians[1]:.1f} ms, medians")


def figure5_arm(found: Gathered, offsets: int) -> Arm | None:
    """16 embeddings in all, by embeddings a step."""
    label = next(iter(found.labels("figure5")), "")
    return found.arm("figure5", label, Reading(num_targets=FIGURE5_TOTAL, offsets_per_step=offsets))


def figure5(found: Gathered) -> list[Claim]:
    """Recall and uniqueness of one step of 16 against 16 steps of one."""
    many_a_step, one = figure5_arm(found, 16), figure5_arm(found, 1)
    claims = []
    for name, field, least in (("recall", "any_hit", 0.16), ("unique", "unique_within", 0.21)):
        gain = None if many_a_step is None or one is None else many_a_step.gain(one, field).value
        bar = f">= +{100 * least:.0f} %, clear of 0"
        claim = f"Figure 5: {name} of 1 x 16 against 16 x 1"
        claims.append(_at_least(claim, bar, gain, least, 0.0, seeds_of(many_a_step, one)))
    return claims


def recency_bias(found: Gathered, coverage: tuple[Interval, int] | None, older: Interval | None) -> list[Claim]:
    """Whether mt_oc serves older interests better than oc does."""
    bar = "above 1, clear of it"
    planted, seeds = coverage or (None, "")
    arms = [found.arm("headline", model, headline(HEADLINE)) for model in ("mt_oc", "oc")]
    older_name = "Targets that only older interests explain (KuaiRand): mt_oc / oc, by their ratio in all other targets"
    return [
        _at_least("Two interleaved interests (synthetic): mt_oc / oc", bar, planted, 1.0, 1.0, str(seeds)),
        _at_least(older_name, bar, older, 1.0, 1.0, seeds_of(*arms)),
    ]


def id_embedding(found: Gathered, model: str, group: str, content_alone: str) -> Claim:
    """What the ID embedding adds to content, in a variant; `content_alone` is the row without it."""
    base = headline(HEADLINE)
    both, content = found.arm("headline", model, base), found.arm(group, content_alone, base)
    value = ratio(both, content)
    gain = None if value is None else value.minus(1.0)
    name, bar = f"ID embedding over content only, {model}, KuaiRand", ">= +14 %, clear of 0"
    if both is None or content is None:
        return Claim(name, bar, None, None)
    note = f"of the share of targets: {shown(both.gain(content, 'target_share'))}"
    return _at_least(name, bar, gain, 0.14, 0.0, seeds_of(both, content), note)


def int8(found: Gathered) -> Claim:
    """What INT8 costs."""
    base = headline(HEADLINE)
    exact = replace(base, float_content=True)
    name, bar = "INT8 transport against float", "recall within .5 %"
    served = found.arm("headline", "mt_oc", base)
    exactly = found.arm("ablations", "float content instead of INT8", exact)
    value = ratio(served, exactly)
    # Half a percent is less than seeds differ by: only the same models tell.
    if value is None or served is None or exactly is None or len(served.results) != len(exactly.results):
        return Claim(name, bar, None, None)
    holds = abs(value.mean - 1.0) <= 0.005
    return Claim(name, bar, Gain(value.minus(1.0)), holds, seeds=seeds_of(served, exactly))


def training_speed(speed: Mapping[str, Any]) -> Claim:
    """Examples a second against RecTools' SASRec."""
    name, bar = "Training speed / RecTools' SASRec", ">= 2"
    if not speed:
        return Claim(name, bar, None, None)
    remark = (
        f"{speed['ours examples_per_second']:.0f} sequences/s and {speed['ours peak_rss_mib']:.0f} MiB against "
        f"{speed['rectools examples_per_second']:.0f}/s and {speed['rectools peak_rss_mib']:.0f} MiB"
    )
    return Claim(name, bar, float(speed["ratio"]), speed["ratio"] >= 2.0, remark)
