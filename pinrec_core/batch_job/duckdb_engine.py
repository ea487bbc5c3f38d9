"""The embedded engine: DuckDB in this process, on a database file that takes what memory does not hold.

Cleaned rows go into a table once; histories are then made a bucket at a time, so that memory is bounded by a bucket
(or by the longest history, if it is longer) and not by the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import TracebackType

import duckdb
import pyarrow as pa
from tqdm import tqdm

from pinrec_core.batch_job.definition import FUNCTIONS, ORDER, counted, quoted
from pinrec_core.batch_job.engine import EVENTS, LOG, VIEW_COLUMNS, Counted
from pinrec_core.batch_job.event_partitions import EventFolder, EventPartition
from pinrec_core.errors import InvalidConfig, InvalidData

_OPTIONAL = "SELECT CAST(NULL AS UBIGINT) AS event_id, CAST(NULL AS STRING) AS text WHERE false"
"""Columns that files of one day may lack while others have them."""
_COLUMNS = ", ".join(VIEW_COLUMNS)
_AMOUNT = re.compile(r"[0-9]*\.?[0-9]+ ?[KMGT]i?B", re.IGNORECASE)
"""DuckDB also takes -1, for all there is; this job promises to stay below an amount."""


class DuckDBEngine:
    """See `Engine`."""

    def __init__(self, work: Path, memory: str, progress: bool = False) -> None:
        """`work`: folder for the database and what spills. `memory`: how much DuckDB may hold, e.g. "1.5GB"."""
        if not _AMOUNT.fullmatch(memory):
            raise InvalidConfig(f"memory has value {memory!r}; allowed: an amount like 1.5GB or 800MiB")
        config = {"memory_limit": memory, "temp_directory": str(work / "spill"), "preserve_insertion_order": "false"}
        try:
            self._database = duckdb.connect(str(work / "job.duckdb"), config=config)
        except duckdb.Error as error:
            raise InvalidData(f"DuckDB cannot start: {_first_line(error)}") from error
        self._progress = progress
        how = {"type": "arrow", "null_handling": "special"}  # nulls are theirs to handle, as in Spark
        for name, (function, arguments) in FUNCTIONS.items():
            self._database.create_function(name, _over_arrays(function), list(arguments), "BIGINT", **how)

    def __enter__(self) -> DuckDBEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in FUNCTIONS:
            self._database.remove_function(name)
        self._database.close()

    def load(self, log: EventFolder, partitions: Sequence[EventPartition], cleaned: str) -> None:
        """See `Engine`. Raises InvalidData if a file cannot be read."""
        if not log.is_local:
            self._database.register_filesystem(log.filesystem)
        how = "CREATE TABLE cleaned AS"
        for partition in tqdm(partitions, desc="reading events", unit="day", disable=not self._progress):
            files = [path if log.is_local else log.url_of(path) for path in partition.files]
            try:
                self._database.execute(
                    f"CREATE OR REPLACE TEMP VIEW {LOG} AS SELECT * FROM read_parquet({_list_of(files)}, "
                    "union_by_name = true, hive_partitioning = true, hive_types_autocast = false) "
                    f"UNION ALL BY NAME {_OPTIONAL}"
                )
                self._database.execute(f"{how} {cleaned}")
            except duckdb.Error as error:
                raise InvalidData(f"{log.url!r} cannot be read: {_first_line(error)}") from error
            how = "INSERT INTO cleaned"

    def counted(self) -> list[Counted]:
        """See `Engine`."""
        return [Counted(*row) for row in self._database.execute(counted("cleaned")).fetchall()]

    def write(self, view: str, previous: Sequence[Path], out: Path) -> None:
        """See `Engine`."""
        self._database.execute(f"CREATE VIEW events AS SELECT {_COLUMNS} FROM cleaned WHERE fate IS NULL")
        buckets = {bucket for (bucket,) in self._database.execute("SELECT DISTINCT bucket FROM events").fetchall()}
        buckets |= {path.parent.name.removeprefix("bucket=") for path in previous}
        for bucket in tqdm(sorted(buckets), desc="histories", unit="bucket", disable=not self._progress):
            source = f"SELECT * FROM events WHERE bucket = '{bucket}'"
            files = [str(path) for path in previous if path.parent.name == f"bucket={bucket}"]
            if files:
                earlier = f"read_parquet({_list_of(files)}, hive_types_autocast = false)"
                source += f" UNION ALL BY NAME SELECT * FROM {earlier}"
            part = out / f"bucket={bucket}" / "events.parquet"
            part.parent.mkdir(parents=True)
            try:
                self._database.execute(f"CREATE OR REPLACE TEMP VIEW {EVENTS} AS {source}")
                rows = f"SELECT * EXCLUDE (bucket) FROM ({view}) ORDER BY {', '.join(ORDER)}"
                self._database.execute(f"COPY ({rows}) TO {quoted(str(part))} (FORMAT parquet, COMPRESSION zstd)")
            except duckdb.Error as error:
                raise InvalidData(f"the batch view cannot be made: {_first_line(error)}") from error


def _list_of(files: list[str]) -> str:
    return f"[{', '.join(map(quoted, files))}]"


def _over_arrays(function: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
    """DuckDB hands over chunked arrays."""

    @wraps(function)  # DuckDB reads the signature
    def over_arrays(*columns: pa.ChunkedArray) -> pa.Array:
        return function(*(column.combine_chunks() for column in columns))

    return over_arrays


def _first_line(error: Exception) -> str:
    return next(line for line in str(error).splitlines() if line.strip())
