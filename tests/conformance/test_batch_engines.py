"""The batch view by DuckDB and by Spark: the same rows, from the same log, in full and day by day."""

import os
import sys
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.batch_job.definition import ViewDefinition
from pinrec_core.batch_job.job import JobOptions, build_batch_view
from pinrec_core.errors import InvalidData
from pinrec_core.signals.batch_view import open_batch_view

pytestmark = pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")

DAY_MS = 86_400_000
DAY0 = date(2024, 5, 1)
T0 = 19_844 * DAY_MS
DEFINITION = ViewDefinition(max_events=12, days=20)


@pytest.fixture(scope="module", autouse=True)
def spark(requires_program):
    """Two local cores, as a user's environment would say it."""
    requires_program("java")
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "localhost",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.adaptive.enabled": "false",  # planning and compiling cost more than these few rows
        "spark.sql.codegen.wholeStage": "false",
    }
    builder = SparkSession.builder.master("local[2]")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


def land(folder, day, seed, num_rows=150):
    """Rows of 12 users that landed on a day: on time, late, early, doubled, with ids and without, with queries."""
    rng = np.random.default_rng(seed)
    is_query = rng.random(num_rows) < 0.2
    ids = rng.choice(np.array([0, 1, 2, 3, 2**63, 2**64 - 1], np.uint64), num_rows)
    times = T0 + (day + rng.integers(-25, 1, num_rows)) * DAY_MS + rng.integers(0, 4, num_rows)
    times = np.where(rng.random(num_rows) < 0.1, rng.integers(0, 9, num_rows), times)
    times = np.where(rng.random(num_rows) < 0.05, T0 + (day + 2) * DAY_MS, times)
    texts = np.array(["tea", "TEA", "Grüner Tee ☕"])[rng.integers(0, 3, num_rows)]
    rows = pa.table(
        {
            "user_id": rng.integers(-6, 6, num_rows) * 65_521,
            "item_id": rng.integers(0, 4, num_rows),
            "item_type": np.where(is_query, "search_query", "pin"),
            "action": np.where(is_query, "search", rng.choice(["save", "it's \\ odd"], num_rows)),
            "surface": rng.choice(["home", "related"], num_rows),
            "timestamp_ms": times,
            "event_id": pa.array(ids, mask=(rng.random(num_rows) < 0.5) | (times < 9)),
            "text": pa.array(texts, mask=~is_query),
        }
    )
    part = folder / "events" / f"day={DAY0 + timedelta(days=day)}"
    part.mkdir(parents=True)
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 9)]), part / "part-0.parquet")
    return folder


def rows_of(dest, version):
    parts = sorted((dest / str(version)).rglob("*.parquet"))
    return [(part.parent.name, row) for part in parts for row in pq.ParquetFile(part).read().to_pylist()]


def test_both_engines_write_the_same_rows_and_take_turns(tmp_path):
    """Spark goes on from DuckDB's version and DuckDB from Spark's; each ends where the other does in one run."""
    log = land(tmp_path / "log", 0, seed=1)
    (log / "dataset.json").write_text('{"actions": ["save", "it\'s \\\\ odd"]}')
    dests = {engine: tmp_path / engine for engine in ("duckdb", "spark")}
    first = {engine: build_batch_view(log, dests[engine], JobOptions(DEFINITION, engine)) for engine in dests}
    assert first["duckdb"].num_set_aside > 0
    assert len(rows_of(dests["duckdb"], 1)) > 60
    assert rows_of(dests["duckdb"], 1) == rows_of(dests["spark"], 1)
    land(log, 1, seed=2)
    second = {
        engine: build_batch_view(log, dests[engine], JobOptions(DEFINITION, other))
        for engine, other in (("duckdb", "spark"), ("spark", "duckdb"))
    }
    assert {report.days for report in second.values()} == {("2024-05-02",)}
    assert rows_of(dests["duckdb"], 2) == rows_of(dests["spark"], 2)
    build_batch_view(log, tmp_path / "whole", JobOptions(DEFINITION))
    assert rows_of(tmp_path / "whole", 1) == rows_of(dests["spark"], 2)
    assert second["duckdb"].manifest.partitions == second["spark"].manifest.partitions
    assert open_batch_view(dests["spark"]).num_users == 12


def test_spark_too_refuses_a_breach_of_the_contract(tmp_path):
    log = land(tmp_path / "log", 0, seed=1)
    (log / "dataset.json").write_text('{"actions": ["save"]}')
    said = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(InvalidData, match=r"column action: is unknown; dataset.json says which") as raised:
            build_batch_view(log, tmp_path / engine, JobOptions(engine=engine))
        said.append(raised.value.message)
    assert said[0] == said[1]
