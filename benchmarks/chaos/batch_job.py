"""The daily job on a log of ten million events: time and peak memory of the embedded engine, and Spark's same rows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.chaos.table import Row
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld

SECONDS_BAR, MEMORY_BAR_GB = 120.0, 2.0


def measure(folder: Path, events: int, spark_events: int) -> list[Row]:
    """The job with DuckDB on `events`, and both engines on `spark_events`."""
    seconds, peak_gb = run_job(log_of(folder, events), fresh(folder / "views"))
    small = log_of(folder, spark_events)
    ours, theirs = fresh(folder / "duckdb"), fresh(folder / "spark")
    run_job(small, ours)
    spark_s, _ = run_job(small, theirs, "--engine", "spark")
    rows, same = compare(ours, theirs)
    return [
        Row(
            f"batch view of {events:,} events, embedded engine",
            f"<= {SECONDS_BAR:.0f} s and <= {MEMORY_BAR_GB:.0f} GB",
            f"{seconds:.0f} s, peak {peak_gb:.2f} GB",
            seconds <= SECONDS_BAR and peak_gb <= MEMORY_BAR_GB,
            {"seconds": seconds, "peak_gb": peak_gb},
        ),
        Row(
            f"Spark on {spark_events:,} events",
            "identical rows",
            f"{rows:,} rows, {'identical' if same else 'DIFFERENT'}; {spark_s:.0f} s on local cores",
            same and rows > 0,
            {"rows": rows, "spark_s": spark_s},
        ),
    ]


def log_of(folder: Path, events: int) -> Path:
    """A synthetic log of about so many events, 100 a user, made unless it is there."""
    data = folder / f"log-{events}"
    if not (data / "dataset.json").exists():
        SyntheticWorld(SyntheticSpec(users=events // 100, items=events // 10, events=events)).write(data, progress=True)
    return data


def fresh(folder: Path) -> Path:
    """A folder that is not there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def run_job(log: Path, views: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak resident gigabytes of the job's process."""
    line = [sys.executable, "-m", "services.cli.main", "data", "batch-view", str(log), str(views), *options]
    start = time.monotonic()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return time.monotonic() - start, usage.ru_maxrss / 1e6


def compare(first: Path, second: Path) -> tuple[int, bool]:
    """Rows of the first job's view, and whether the second has the very same."""
    tables = []
    for views in (first, second):
        table = pq.read_table(sorted((views / "1").rglob("*.parquet")))
        tables.append(
            table.select(sorted(table.column_names)).sort_by(
                [("user_id", "ascending"), ("timestamp_ms", "ascending"), ("event_id", "ascending")]
            )
        )
    ours, theirs = tables  # whether a column may be null is each engine's own word
    return len(ours), ours.column_names == theirs.column_names and ours.columns == theirs.columns
