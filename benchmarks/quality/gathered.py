"""What a size's runs have left in the store, as the arms that a report's sections take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from benchmarks.quality.matrix import CONTENT_ALONE, VARIANTS, Job, Reading, Size, headline, jobs_of
from benchmarks.quality.store import RunStore
from pinrec_core.eval.sections import Arm


class Gathered:
    """Looks up arms by table, row and reading; an arm has the seeds that are there."""

    def __init__(self, store: RunStore, size: Size) -> None:
        self.size = size
        self._store = store
        self._jobs = jobs_of(size)

    def labels(self, group: str) -> list[str]:
        """Rows of a table, in the matrix's order."""
        return list(dict.fromkeys(job.label for job in self._jobs if job.group == group))

    def jobs(self, group: str, label: str) -> list[Job]:
        """One a seed."""
        return [job for job in self._jobs if job.group == group and job.label == label]

    def arm(self, group: str, label: str, reading: Reading, name: str = "") -> Arm | None:
        """The results of the seeds that are there, None without any; `name` = what the report calls it."""
        jobs = [job for job in self.jobs(group, label) if self._store.has(job.run, reading)]
        if not jobs:
            return None
        results = tuple(self._store.load(job.run, reading) for job in jobs)
        keys, seeds = zip(*((job.run.key, job.run.seed) for job in jobs), strict=True)
        commits = tuple(dict.fromkeys(self.made_by(job) for job in jobs))
        return Arm(name or label, results, keys, seeds, commits)

    def beside(self, group: str, label: str, reading: Reading, name: str) -> list[float]:
        """A measurement kept beside a reading, one for each seed that has it."""
        noted = [self._store.notes(job.run).get(f"reading {reading.key}", {}) for job in self.jobs(group, label)]
        return [float(values[name]) for values in noted if name in values]

    def notes(self, job: Job) -> dict[str, object]:
        """What training measured."""
        return {name: value for name, value in self._store.notes(job.run).items() if not name.startswith("reading ")}

    def made_by(self, job: Job) -> str:
        """The commit that made a run, empty if it is not there."""
        return str(self._store.made_by(job.run).get("commit", ""))

    def missing(self) -> dict[tuple[str, str], list[int]]:
        """Seeds that lack a reading, by table and row: in the matrix's order, rows that lack nothing left out."""
        found: dict[tuple[str, str], list[int]] = {}
        for job in self._jobs:
            if not all(self._store.has(job.run, reading) for reading in job.readings):
                found.setdefault((job.group, job.label), []).append(job.run.seed)
        return found

    def all_jobs(self) -> list[Job]:
        """One for each run, in order."""
        return list({job.run.key: job for job in self._jobs}.values())


def past(world: str) -> Reading:
    """The budget from the user's own past."""
    return replace(headline(world), conditioning="past")


def many(world: str) -> Reading:
    """As many items for a one-vector model as PinRec's embeddings retrieve at best."""
    base = headline(world)
    return replace(base, k=base.k * base.num_targets)


def compared(found: Gathered, group: str, world: str) -> list[Arm]:
    """Rows of Table 1: variants, then one-vector models with top k and top k x Delta."""
    return present(
        arm
        for label in found.labels(group)
        for arm in (
            (found.arm(group, label, headline(world)),)
            if label in ("uc", CONTENT_ALONE)
            else (
                found.arm(group, label, headline(world), f"{label}, true outcomes"),
                found.arm(group, label, past(world), f"{label}, past mix"),
            )
            if label in VARIANTS
            else (
                found.arm(group, label, headline(world), f"{label}, top {headline(world).k}"),
                found.arm(group, label, many(world), f"{label}, top {many(world).k}"),
            )
        )
    )


def seen_otherwise(found: Gathered, group: str, world: str) -> list[Arm]:
    """The same with seen items left in, or dropped where the headline leaves them in."""
    return present(
        found.arm(group, label, replace(reading, drop_seen=not reading.drop_seen), name)
        for label in found.labels(group)
        for reading, name in (
            ((headline(world), label),)
            if label in VARIANTS
            else ((many(world), f"{label}, top {many(world).k}"),)
        )
    )  # fmt: skip


def present(arms: Iterable[Arm | None]) -> list[Arm]:
    """Those that are there."""
    return [arm for arm in arms if arm is not None]
