"""Writes a data folder in the event-log contract, in pieces, and puts it in place only when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts


@dataclass(frozen=True)
class NameColumn:
    """A column of few distinct strings: int codes [n] into `names`; -1 is null."""

    codes: NDArray[Any]
    names: Sequence[str]

    def to_arrow(self) -> pa.Array:
        """A string column, dictionary-encoded."""
        codes = np.asarray(self.codes, dtype=np.int32)
        return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(self.names, pa.string()))


LATEST_MS = 7_258_118_400_000
"""The start of the year 2200: a time after it is in another unit."""

Column: TypeAlias = NDArray[Any] | NameColumn | pa.Array


class FolderWriter:
    """Context manager: `events(...)` and `items(...)` append pieces; leaving it renames the whole folder into place.

    Nothing is left at `folder` if the block raises. Raises InvalidData if `folder` exists and is not empty.
    """

    def __init__(self, folder: Path, facts: DatasetFacts) -> None:
        self._folder, self._facts = Path(folder), facts
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._staging = self._folder

    def __enter__(self) -> FolderWriter:
        if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
            raise InvalidData(f"{self._folder} exists and is not empty: remove it or name another folder")
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        self._staging = Path(tempfile.mkdtemp(prefix=f".{self._folder.name}-", dir=self._folder.parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():
            writer.close()
        if kind is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            return
        self._facts.save(self._staging)
        self._staging.chmod(0o755)
        if self._folder.exists():
            self._folder.rmdir()
        os.replace(self._staging, self._folder)

    @property
    def staging(self) -> Path:
        """Where files lie until the folder is whole, for what a reader saves beside the two tables."""
        return self._staging

    def events(self, **columns: Column) -> None:
        """Append a row group to events.parquet; every call names the same columns.

        Raises InvalidData for times before 1970 or after 2200.
        """
        _refuse_times(np.asarray(columns["timestamp_ms"]))
        self._append("events", columns)

    def items(self, **columns: Column) -> None:
        """Append a row group to items.parquet; every call names the same columns."""
        self._append("items", columns)

    def _append(self, name: str, columns: dict[str, Column]) -> None:
        table = pa.table({key: _to_arrow(value) for key, value in columns.items()})
        if name not in self._writers:
            # Without Arrow's own schema in the footer, names come back as plain strings for every program.
            self._writers[name] = pq.ParquetWriter(
                self._staging / f"{name}.parquet", table.schema, compression="zstd", store_schema=False
            )
        self._writers[name].write_table(table)


def _refuse_times(times_ms: NDArray[np.int64]) -> None:
    """A log in the wrong unit of time would train, and tell the model of days that were none."""
    wrong = times_ms[(times_ms < 0) | (times_ms >= LATEST_MS)]
    if len(wrong):
        raise InvalidData(f"column timestamp_ms: has value {wrong[0]}; allowed: 0 to {LATEST_MS:,} ms (the year 2200)")


def _to_arrow(column: Column) -> pa.Array:
    if isinstance(column, NameColumn):
        return column.to_arrow()
    if isinstance(column, np.ndarray) and column.ndim == 2:
        width = column.shape[1]
        offsets = np.arange(0, len(column) * width + 1, width, dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, column.ravel())
    return pa.array(column) if isinstance(column, np.ndarray) else column
