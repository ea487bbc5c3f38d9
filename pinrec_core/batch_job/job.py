"""The daily batch-view job: what to read, by which engine, and the next version (paper, section 4.4.1).

A run reads the current version and the landing days of the log that it lacks; the whole log where there is no version
to go on from (`plan.py`). What it writes is what reading the whole log would give.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pinrec_core.batch_job.definition import SET_ASIDE, ViewDefinition, cleaned
from pinrec_core.batch_job.engine import EVENTS, LOG, Counted, Engine
from pinrec_core.batch_job.event_partitions import EventFolder, EventPartition
from pinrec_core.batch_job.plan import Plan, plan
from pinrec_core.errors import InvalidConfig, InvalidData
from pinrec_core.event_log.contract import UNKNOWN_SURFACE
from pinrec_core.event_log.landing import latest_ms
from pinrec_core.signals.view_folder import ViewManifest, publish, staging_folder

ENGINES = ("duckdb", "spark")


@dataclass(frozen=True)
class JobOptions:
    """How a batch view is made; `definition` alone decides over its rows."""

    definition: ViewDefinition = field(default_factory=ViewDefinition)
    engine: str = "duckdb"
    full: bool = False
    """Read the whole log again."""
    until_ms: int | None = None
    """Of a log without landing days: events later than this are set aside; None = now."""
    keep: int = 2
    """Versions that stay in the folder."""
    memory: str = "1.5GB"
    """How much DuckDB may hold; Spark has its own setting."""


@dataclass(frozen=True)
class JobReport:
    """What a run did."""

    manifest: ViewManifest
    days: tuple[str, ...]
    """Landing days that were read; empty = the current version has them all."""
    why: str
    """Why these."""
    num_rows: int
    """Rows of the log that were read."""
    num_set_aside: int
    """Of those, rows that are later than their landing allows."""


def build_batch_view(
    log: str | Path, dest: Path, options: JobOptions | None = None, progress: bool = False
) -> JobReport:
    """Make the next version of the batch view of `log` (a folder, or any fsspec URL) in the folder `dest`.

    Nothing changes in `dest` if this raises: InvalidData where the log breaks the contract, with counts; InvalidConfig
    for an option; Unavailable while another job writes to `dest`.
    """
    options = options or JobOptions()
    folder = EventFolder.open(log)
    with staging_folder(dest) as staging:
        todo = plan(folder, dest, options.definition.facts(), options.full)
        if todo.previous is not None and not todo.partitions:
            return JobReport(todo.previous, (), todo.why, 0, 0)
        for name in ("work", "view"):
            (staging / name).mkdir()
        with _engine(options, staging / "work", progress) as engine:
            counts = _load(engine, folder, todo.partitions, options)
            watermark_ms = _watermark(folder.url, counts, todo.previous)
            engine.write(options.definition.view(EVENTS, watermark_ms), todo.files, staging / "view")
        manifest = _manifest(folder, todo, counts, options.definition, _written(staging / "view"), watermark_ms)
        manifest = publish(dest, staging / "view", manifest, options.keep)
    aside = sum(one.num_rows for one in counts if one.fate == SET_ASIDE)
    days = tuple(partition.day for partition in todo.partitions)
    return JobReport(manifest, days, todo.why, sum(one.num_rows for one in counts), aside)


def _engine(options: JobOptions, work: Path, progress: bool) -> Engine:
    if options.engine == "duckdb":
        from pinrec_core.batch_job.duckdb_engine import DuckDBEngine

        return DuckDBEngine(work, options.memory, progress)
    if options.engine == "spark":
        from pinrec_core.batch_job.spark_engine import SparkEngine

        return SparkEngine()
    raise InvalidConfig(f"engine has value {options.engine!r}; allowed: {', '.join(ENGINES)}")


def _load(
    engine: Engine, folder: EventFolder, partitions: Sequence[EventPartition], options: JobOptions
) -> list[Counted]:
    """Read the partitions and hold every row to the contract."""
    days = [partition.day for partition in partitions if partition.day]
    if options.until_ms is not None and days:
        allowed = f"none for a log with landing days ({days[0]})"
        raise InvalidConfig(f"until_ms has value {options.until_ms}; allowed: {allowed}")
    until_ms = time.time_ns() // 1_000_000 if options.until_ms is None else options.until_ms
    latest = {p.day: latest_ms(p.day) if p.day else until_ms for p in partitions}
    columns = folder.columns(partitions)
    engine.load(folder, partitions, cleaned(LOG, columns, latest, folder.facts.actions))
    counts = engine.counted()
    broken: dict[str, int] = {}
    for one in counts:
        if one.fate not in (None, SET_ASIDE):
            broken[str(one.fate)] = broken.get(str(one.fate), 0) + one.num_rows
    if broken:
        said = "\n  ".join(f"events, {fate} ({n:,} {'row' if n == 1 else 'rows'})" for fate, n in broken.items())
        raise InvalidData(
            f"{folder.url} does not keep the event-log contract:\n  {said}\n`pinrec data check` shows the rows"
        )
    return counts


def _watermark(url: str, counts: Sequence[Counted], previous: ViewManifest | None) -> int:
    """Newest time of all events. Raises InvalidData if there is none, or none of a known surface."""
    events = [one for one in counts if one.fate is None]
    if previous is None:
        if not events:
            raise InvalidData(f"{url} does not keep the event-log contract:\n  events: has no rows to keep")
        if not any(one.num_known for one in events):
            what = f"events, column surface: is {UNKNOWN_SURFACE} in every row; a request must name one"
            raise InvalidData(f"{url} does not keep the event-log contract:\n  {what}")
    newest = [one.newest_ms for one in events if one.newest_ms is not None]
    return max([*newest, *([previous.watermark_ms] if previous is not None else [])])


def _manifest(
    folder: EventFolder,
    todo: Plan,
    counts: Sequence[Counted],
    definition: ViewDefinition,
    written: tuple[int, int],
    watermark_ms: int,
) -> ViewManifest:
    """What was `written` (rows and users), before it has a number."""
    num_events, num_users = written
    read: dict[str, dict[str, Any]] = {
        partition.day: {
            "files": len(partition.files),
            "fingerprint": partition.fingerprint,
            "rows": sum(one.num_rows for one in counts if one.landed == partition.day),
            "set_aside": sum(one.num_rows for one in counts if (one.landed, one.fate) == (partition.day, SET_ASIDE)),
        }
        for partition in todo.partitions
    }
    return ViewManifest(
        watermark_ms=watermark_ms,
        num_events=num_events,
        num_users=num_users,
        log=folder.url,
        definition=definition.facts(),
        partitions={**(todo.previous.partitions if todo.previous is not None else {}), **read},
    )


def _written(out: Path) -> tuple[int, int]:
    """Rows and users under `out`."""
    num_events = num_users = 0
    for path in out.rglob("*.parquet"):
        last = None
        for batch in pq.ParquetFile(path).iter_batches(columns=["user_id"]):
            users = batch.column("user_id").to_numpy()
            num_events += len(users)
            num_users += int((users[1:] != users[:-1]).sum()) + int(len(users) > 0 and users[0] != last)
            last = users[-1] if len(users) else last
    return num_events, num_users
