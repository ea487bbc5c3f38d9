"""Events in any order -> tables of whole users, by user and time, in bounded memory: sorted runs on disk, merged.

A log of hundreds of millions of impressions is never in memory: what is held is one run while it is sorted, and one
range of users while it is merged. Runs are memory-mapped, so that a range of users costs its own rows only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

USER, TIME = "user_id", "timestamp_ms"
"""The int64 columns that order a table; any others travel along."""


class _Run(NamedTuple):
    """A sorted table on disk, with its users int64 [U] and where their rows begin, int64 [U + 1]."""

    table: pa.Table
    users: NDArray[np.int64]
    offsets: NDArray[np.int64]


class EventSorter:
    """Context manager: `add` tables of one schema, then read `tables()` once. Equal times keep the order of arrival."""

    def __init__(self, dest: Path, run_rows: int = 4_000_000, table_rows: int = 1_000_000) -> None:
        """`dest`: runs lie beside it; `run_rows` are sorted at a time, a table has about `table_rows` or one user."""
        self._dest, self._run_rows, self._table_rows = Path(dest), run_rows, table_rows
        self._pending: list[pa.Table] = []
        self._num_pending = 0
        self._runs: list[_Run] = []

    def __enter__(self) -> EventSorter:
        self._scratch = tempfile.TemporaryDirectory(prefix=f".{self._dest.name}-runs-", dir=self._dest.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runs.clear()
        self._scratch.cleanup()

    def add(self, table: pa.Table) -> None:
        """Take a table of any length."""
        self._pending.append(table)
        self._num_pending += len(table)
        if self._num_pending >= self._run_rows:
            self._spill()

    def tables(self) -> Iterator[pa.Table]:
        """Tables with all rows of some users each, ascending by user, then time, then arrival."""
        if self._num_pending:
            self._spill()
        if not self._runs:
            return
        users, counts = self._count()
        ends = np.cumsum(counts)
        start = 0
        while start < len(users):
            done = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, done + self._table_rows, side="right")))
            parts = [_rows_of(run, users[start], users[stop - 1]) for run in self._runs]
            yield _sorted(pa.concat_tables(parts))
            start = stop

    def _spill(self) -> None:
        """Sort what is pending and put it on disk."""
        table = _sorted(pa.concat_tables(self._pending)).combine_chunks()
        self._pending, self._num_pending = [], 0
        path = Path(self._scratch.name) / f"{len(self._runs)}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        users, first = np.unique(table[USER].to_numpy(), return_index=True)
        mapped = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._runs.append(_Run(mapped, users, np.append(first, len(table)).astype(np.int64)))

    def _count(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All users int64 [U], ascending, and their rows over all runs, int64 [U]."""
        users = np.unique(np.concatenate([run.users for run in self._runs]))
        counts = np.zeros(len(users), dtype=np.int64)
        for run in self._runs:
            counts[np.searchsorted(users, run.users)] += np.diff(run.offsets)
        return users, counts


def _sorted(table: pa.Table) -> pa.Table:
    order = np.lexsort((table[TIME].to_numpy(), table[USER].to_numpy()))  # stable
    return table.take(pa.array(order))


def _rows_of(run: _Run, first: int, last: int) -> pa.Table:
    start = run.offsets[np.searchsorted(run.users, first, side="left")]
    stop = run.offsets[np.searchsorted(run.users, last, side="right")]
    return run.table.slice(start, stop - start)
