"""The report of a bench: its sections, made from what the runs have left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.claims import BEAUTY_READING, figure5_arm, judge, outcome_matrix
from benchmarks.quality.gathered import Gathered, compared, present, seen_otherwise
from benchmarks.quality.latency import Latency
from benchmarks.quality.matrix import (
    FIGURE5_OFFSETS,
    FIGURE5_TOTAL,
    HEADLINE,
    LONGER,
    RETAILROCKET,
    STRICT,
    VARIANTS,
    headline,
)
from pinrec_core.eval.bootstrap import Interval, Weighted, interval, ratio_of_ratios
from pinrec_core.eval.report import Cell, Provenance, Report, Section, Table, shown, write_report
from pinrec_core.eval.sections import (
    Ablations,
    Arm,
    Breakdown,
    Claim,
    Claims,
    Comparison,
    Facts,
    StepSweep,
    SweepPoint,
    sample_of,
)

_COMPARISONS = (
    ("headline", HEADLINE, HEADLINE),
    ("longer", HEADLINE, f"{HEADLINE}, {LONGER:g} times the steps"),
    ("strict", STRICT, STRICT),
    ("retailrocket", RETAILROCKET, RETAILROCKET),
)
"""Group, world, and how the page calls it."""
_SERVED = {
    "served_unordered_recall": "any target served",
    "served_target_recall": "share of targets served",
    "compression_ratio": "embeddings generated for one kept",
}
_COVERAGE_DRAWS = 1_000
_PROTOCOLS = (
    "Protocols and corpora are those of `pinrec_core/eval/protocols.py`, runs those of `benchmarks/quality/matrix.py`."
)
_INTRODUCTION = {
    True: _PROTOCOLS,
    False: f"{_PROTOCOLS} Fewer users, steps, seeds and models than `make bench-quality`: the models are hardly "
    "trained. This page shows what is measured and how; its verdicts say nothing about the claims.",
}
"""By whether the bench is the full one."""


@dataclass(frozen=True)
class Measured:
    """What is no run of the matrix."""

    latencies: list[Latency] = field(default_factory=list)
    speed: Mapping[str, Any] = field(default_factory=dict)
    coverage: list[dict[str, float]] = field(default_factory=list)
    """A seed's share of synthetic users whose both interests are covered, by variant."""
    older: NDArray[np.bool_] | None = None
    """Of the headline's test targets: whether only older interests explain them."""
    failed: tuple[str, ...] = ()
    """What could not be run, in words."""


def write(folder: Path, found: Gathered, measured: Measured, command: str) -> Path:
    """Write the page, its plots and its JSON; the page's path."""
    return write_report(folder, Report(
        f"What the paper claims, measured ({found.size.name} bench)",
        Provenance.here(command),
        sections(found, measured),
        _INTRODUCTION[found.size.name == "full"],
    ), name=f"quality-{found.size.name}")  # fmt: skip


def sections(found: Gathered, measured: Measured) -> list[Section]:
    """Everything that there is something to show of, the verdicts first."""
    verdicts = tuple(verdicts_of(found, measured))
    made: list[Section | None] = [
        Claims("Claims", verdicts, _claims_note(found)),
        *(section for group, world, name in _COMPARISONS for section in comparison(found, group, world, name)),
        figure5(found, measured.latencies),
        latency(measured.latencies),
        ablations(found),
        served(found),
        beauty(found),
        recency(found, measured),
        training_speed(measured.speed),
        runs(found, measured.failed),
    ]  # fmt: skip
    return [section for section in made if section is not None]


def _claims_note(found: Gathered) -> str:
    """How much of the bench stands behind the verdicts."""
    runs, missing = len(found.all_jobs()), sum(map(len, found.missing().values()))
    note = (
        "On test users; settings are the best on validation users, and where the search looked at test users as well "
        "(Beauty, RetailRocket) docs/studies.md says so. Gains and ratios have to clear 0 and 1."
    )
    if missing:
        note += (
            f" Of {runs:,} runs some are not there yet (see the end of the page): verdicts rest on the seeds that each "
            "section names, with one seed on its users alone."
        )
    return note


def verdicts_of(found: Gathered, measured: Measured) -> list[Claim]:
    """Every claim on what there is."""
    ratio, older = coverage_ratio(measured), older_ratio(found, measured)
    coverage = None if ratio is None else (ratio, len(measured.coverage))
    return judge(found, measured.latencies, measured.speed, coverage, older)


def comparison(found: Gathered, group: str, world: str, name: str) -> list[Section | None]:
    """Table 1, who is found, and Figure 4 of one world, as the page names it."""
    arms = compared(found, group, world)
    if not arms:
        return []
    otherwise = seen_otherwise(found, group, world)
    variants = present(found.arm(group, model, headline(world)) for model in VARIANTS)
    corpus = arms[0].results[0].corpus_size
    here, there = ("dropped", "kept") if headline(world).drop_seen else ("kept", "dropped")
    note = f"Corpus: all {corpus:,} items with an event. Items that the user has seen are {here} for all."
    return [
        Comparison(f"Table 1, {name}", world, tuple(arms), "uc", note),
        Comparison(f"Table 1, {name}, seen items {there}", world, tuple(otherwise), "uc") if otherwise else None,
        Breakdown(f"Whom and what, {name}", world, tuple(variants)) if variants else None,
        *(outcome_matrix(found, group, world, model, name) for model in ("oc", "mt_oc")),
    ]


def figure5(found: Gathered, latencies: list[Latency]) -> Section | None:
    """Latency, recall and uniqueness by embeddings a step."""
    times = {each.offsets_per_step: each.times_ms for each in latencies if each.total == FIGURE5_TOTAL}
    points = tuple(
        SweepPoint(offsets, FIGURE5_TOTAL // offsets, np.array(times[offsets]), arm)
        for offsets in FIGURE5_OFFSETS
        if offsets in times and (arm := figure5_arm(found, offsets)) is not None
    )
    note = f"{FIGURE5_TOTAL} embeddings in all, of one model; users with {FIGURE5_TOTAL} targets and a history before."
    return StepSweep("Figure 5", HEADLINE, points, note) if points else None


def latency(latencies: list[Latency]) -> Section | None:
    """The generate stage, prefill included, batch 1."""
    if not latencies:
        return None
    rows = tuple(
        (each.total, each.offsets_per_step, each.total // each.offsets_per_step, _spread(each.times_ms),
         each.median_ms / next(o.median_ms for o in latencies if o.total == each.total and o.offsets_per_step == 1))
        for each in latencies
    )  # fmt: skip
    header = ("embeddings in all", "a step", "steps", "ms: median [10 %, 90 %]", "against one a step")
    note = f"After 128 events, one outcome, batch 1, {len(latencies[0].times_ms)} requests each, plans in turn."
    return Facts("Latency of the generate stage", (Table("", header, rows),), note)


def _spread(values: tuple[float, ...]) -> Interval:
    low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
    return Interval(float(median), float(low), float(high))


def ablations(found: Gathered) -> Section | None:
    """mt_oc with one thing changed."""
    plain = found.arm("headline", "mt_oc", headline(HEADLINE), "mt_oc as it is")
    labels = [label for label in found.labels("ablations") if not label.startswith("served")]
    arms = present(
        found.arm("ablations", label, found.jobs("ablations", label)[0].readings[0], label) for label in labels
    )
    return Ablations("Ablations", HEADLINE, plain, tuple(arms)) if plain and arms else None


def served(found: Gathered) -> Section | None:
    """What compression does to what would be served; means over seeds, without intervals."""
    rows: list[tuple[Cell, ...]] = []
    for label in found.labels("ablations"):
        jobs = found.jobs("ablations", label)
        values = [found.beside("ablations", label, jobs[0].readings[0], name) for name in _SERVED]
        if all(values):
            rows.append((label, *(float(np.mean(of)) for of in values)))
    note = "mt_oc; k x Delta places a user, no item twice, similar embeddings merged. Means over seeds."
    if not rows:
        return None
    plain = found.arm("headline", "mt_oc", headline(HEADLINE))
    of = None if plain is None else sample_of(HEADLINE, [plain])
    return Facts("Compression", (Table("", ("", *_SERVED.values()), tuple(rows)),), note, of)


def beauty(found: Gathered) -> Section | None:
    """R@10 and NDCG@10, leave-one-out, full ranking."""
    readings = (BEAUTY_READING, replace(BEAUTY_READING, drop_seen=False))
    arms: dict[str, list[Arm]] = {}
    for label in found.labels("beauty"):
        both = present(found.arm("beauty", label, reading) for reading in readings)
        if len(both) == len(readings):
            arms[label] = both
    if not arms:
        return None
    rows = tuple(
        (label, len(both[0].results), *(
            cell for arm, reading in zip(both, readings, strict=True)
            for cell in (arm.on("any_hit"), f"{np.mean(found.beside('beauty', label, reading, 'ndcg')):.4f}")
        ))
        for label, both in arms.items()
    )  # fmt: skip
    note = (
        "One target a user. Times are days, so that the last two items of many users tie: as stored, and shuffled. "
        "Validation items trained: those of nine users in ten, which is more than published figures are trained on. "
        "Published: SASRec with cross-entropy .0810-.0859 / .0457-.0503; with sampled softmax .0921 / .0531, eSASRec "
        ".0928 / .0523 (blondered/transformer_benchmark; 256 wide, 256 negatives, histories of 50, up to 200 epochs, "
        "where RecTools' models here have 64, 128, 20 and 100; the row of published sizes has 256, 256, 20 and 100)."
    )
    header = ("model", "seeds", "R@10", "NDCG@10", "R@10, seen kept", "NDCG@10, seen kept")
    return Facts("Amazon Beauty", (Table("", header, rows),), note,
                 sample_of("amazon-beauty", [both[0] for both in arms.values()]))  # fmt: skip


def coverage_ratio(measured: Measured) -> Interval | None:
    """mt_oc / oc in covering both interests, seeds drawn again; None unless there are several."""
    if len(measured.coverage) < 2:
        return None
    a, b = (np.array([seed[model] for seed in measured.coverage]) for model in ("mt_oc", "oc"))
    draws = np.random.default_rng(0).integers(0, len(a), (_COVERAGE_DRAWS, len(a)))
    ratios = a[draws].mean(axis=1) / np.maximum(b[draws].mean(axis=1), 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(float(a.mean() / max(b.mean(), 1e-9)), float(low), float(high))


def older_ratio(found: Gathered, measured: Measured) -> Interval | None:
    """mt_oc / oc in the share found of the targets that only older interests explain, by their ratio in the others.

    mt_oc finds more of all targets; only what it finds more of the older ones speaks of recency. None if it was not
    measured.
    """
    arms = [found.arm("headline", model, headline(HEADLINE)) for model in ("mt_oc", "oc")]
    if measured.older is None or not all(_is_of(arm, measured.older) for arm in arms):
        return None
    mt_oc, oc = ((_found(arm, measured.older), _found(arm, ~measured.older)) for arm in present(arms))
    return ratio_of_ratios(mt_oc, oc)


def _is_of(arm: Arm | None, mask: NDArray[np.bool_]) -> bool:
    """Whether a mask is of the targets that an arm was measured on."""
    return arm is not None and len(arm.results[0].target_hit) == len(mask)


def recency(found: Gathered, measured: Measured) -> Section | None:
    """Whether older interests are served."""
    tables = []
    if measured.coverage:
        rows: tuple[tuple[Cell, ...], ...] = tuple(
            (model, *(seed[model] for seed in measured.coverage)) for model in VARIANTS
        )
        header = ("variant", *(f"seed {place}" for place in range(len(measured.coverage))))
        tables.append(
            Table("Synthetic users with two interleaved interests: share whose candidates cover both", header, rows)
        )
    arms = present(found.arm("headline", model, headline(HEADLINE)) for model in VARIANTS)
    if measured.older is not None and arms and _is_of(arms[0], measured.older):
        title = f"KuaiRand targets that only the older history explains ({int(measured.older.sum()):,}): share found"
        tables.append(
            Table(
                title,
                ("variant", "share of these", "share of all others"),
                tuple((arm.label, _share(arm, measured.older), _share(arm, ~measured.older)) for arm in arms),
            )
        )
    note = "Older: before the newest 4 events. Explained: content alike, cosine of .5 and more."
    of = sample_of(HEADLINE, arms) if arms else None
    return Facts("Recency bias", tuple(tables), note, of) if tables else None


def _share(arm: Arm, mask: NDArray[np.bool_]) -> Interval:
    return interval(*_found(arm, mask))


def _found(arm: Arm, mask: NDArray[np.bool_]) -> Weighted:
    return arm.targets([mask] * len(arm.results))


def training_speed(speed: Mapping[str, Any]) -> Section | None:
    """Both sides, and what they had in common."""
    if not speed:
        return None
    rows = tuple(
        (side, float(speed[f"{side} examples_per_second"]), float(speed[f"{side} peak_rss_mib"]))
        for side in ("ours", "rectools")
    )
    common = ("n_factors", "n_blocks", "n_heads", "session_max_len", "batch_size", "n_negatives")
    note = "Equal for both: " + ", ".join(f"{name} {speed[name]}" for name in common)
    note += f". Ratio of each round: {', '.join(f'{each:.2f}' for each in speed['ratios'])}."
    return Facts("Training speed", (Table("", ("side", "sequences/s", "peak memory, MiB"), rows),), note)


def runs(found: Gathered, failed: tuple[str, ...]) -> Section | None:
    """Which commit made each run, and what is not run yet."""
    rows: list[tuple[Cell, ...]] = []
    for job in found.all_jobs():
        notes = found.notes(job)
        steps = notes.get("steps", notes.get("epochs"))
        if notes:
            settings = ", ".join(f"{key}={value}" for key, value in job.run.settings)
            rows.append((job.run.world, job.run.model, settings, job.run.seed, str(steps or ""),
                         found.made_by(job), job.run.key))  # fmt: skip
    missing = tuple((*row, ", ".join(map(str, seeds))) for row, seeds in found.missing().items())
    if not rows:
        return None
    tables = [Table("", ("world", "model", "changed", "seed", "steps or epochs", "commit", "key"), tuple(rows))]
    if missing:
        tables.append(Table("Not run, or not read in every way, yet", ("table", "row", "seeds"), missing))
    note = "" if not failed else "Not run: " + "; ".join(failed)
    return Facts("Runs", tuple(tables), note)


def text(found: Gathered, measured: Measured) -> list[str]:
    """The verdicts, for the terminal."""
    words = {True: "holds", False: "DOES NOT HOLD", None: "not measured"}
    return [f"{words[c.holds]:<14} {c.name}: {shown(c.found)} ({c.bar}) {c.note}" for c in verdicts_of(found, measured)]
