"""Parquet in and out for the event-log contract: schema checks, batches as numpy, names as codes, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pinrec_core.event_log.problems import Findings

EVENT_COLUMNS = {
    "user_id": "int64",
    "item_id": "int64",
    "item_type": "name",
    "action": "name",
    "surface": "name",
    "timestamp_ms": "int64",
}
"""Columns that every event has, and their types; a name is a string of few distinct values."""
OPTIONAL_EVENT_COLUMNS = {"event_id": "uint64", "text": "string", "actions": "list<string>"}
ITEM_COLUMNS = {"item_id": "int64", "item_type": "name"}
OPTIONAL_ITEM_COLUMNS = {"embedding": "list<float>", "text": "string", "title": "string", "url": "string"}

UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What reading a file may raise: values that do not fit a column's type, damaged pages, text that is not UTF-8."""

_NAMES = pa.dictionary(pa.int32(), pa.string())
_ARROW_TYPES = {
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "name": _NAMES,
    "string": pa.string(),
    "list<float>": pa.list_(pa.float32()),
}
_PARTITION_TYPES = {**_ARROW_TYPES, "name": pa.string()}

_HINTS = {
    "user_id": "; string ids can be numbered with `pinrec data map-ids`",
    "item_id": "; string ids can be numbered with `pinrec data map-ids`",
    "timestamp_ms": "; store milliseconds since 1970",
}


def find_files(folder: Path, name: str, findings: Findings) -> list[Path]:
    """`<name>.parquet`, or every Parquet file under a partitioned `<name>/`; a finding if there is none, or both."""
    single, parts = folder / f"{name}.parquet", folder / name
    found = sorted(p for p in parts.rglob("*.parquet") if not p.name.startswith((".", "_"))) if parts.is_dir() else []
    if single.is_file() and found:
        findings.file(f"{name}.parquet", f"lies beside a partitioned {name}/: keep one of the two")
        return []
    if not single.is_file() and not found:
        findings.file(f"{name}.parquet", "is missing")
    return [single] if single.is_file() else found


def check_schemas(
    folder: Path, files: list[Path], required: Mapping[str, str], optional: Mapping[str, str], findings: Findings
) -> bool:
    """Hold each file's columns to `required` and `optional` types. Returns whether all can be read."""
    before = len(findings.problems)
    for path in files:
        name = str(path.relative_to(folder))
        try:
            schema = pq.read_schema(path)
        except (pa.ArrowException, OSError):
            findings.file(name, "is not a readable Parquet file")
            continue
        check_schema(name, schema, required, optional, findings)
    return len(findings.problems) == before


def check_schema(
    name: str, schema: pa.Schema, required: Mapping[str, str], optional: Mapping[str, str], findings: Findings
) -> None:
    """Hold the columns of one file to `required` and `optional` types; partition folders in its `name` are columns."""
    partitions = {part.split("=", 1)[0] for part in name.split("/") if "=" in part}
    for column, wanted in {**required, **optional}.items():
        at = schema.get_field_index(column)
        if at < 0:
            if column in required and column not in partitions:
                present = ", ".join(schema.names)
                findings.file(name, f"is missing (the file has {present})", column)
        elif not _fits(schema.field(at).type, wanted):
            hint = _HINTS.get(column, "")
            what = f"has type {schema.field(at).type}, must be {wanted.replace('name', 'string')}{hint}"
            findings.file(name, what, column)


def _fits(kind: pa.DataType, wanted: str) -> bool:
    """Whether a column of type `kind` is read as `wanted`: any integer width, any float width, any string encoding."""
    if pa.types.is_dictionary(kind):
        return _fits(kind.value_type, wanted)
    if wanted.startswith("list<"):
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return is_list and _fits(kind.value_type, wanted[5:-1])
    if wanted == "float":
        return bool(pa.types.is_floating(kind))
    if wanted in ("string", "name"):
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))
    return bool(pa.types.is_integer(kind))


def count_rows(files: list[Path]) -> int:
    """Rows of all files, from their footers."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def read_batches(files: list[Path], base: Path, columns: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Batches of the wanted `columns` (name -> type) in file order, cast to those types; absent columns are null.

    Hive partition folders (`surface=home/`) under `base` give columns too. Raises UNREADABLE.
    """
    schema = pa.schema([(name, _ARROW_TYPES[kind]) for name, kind in columns.items()])
    names = [name for name in columns if schema.field(name).type == _NAMES]
    partitioned = {
        part.split("=", 1)[0] for path in files for part in path.relative_to(base.parent).parts if "=" in part
    }
    partitions = [(name, _PARTITION_TYPES[kind]) for name, kind in columns.items() if name in partitioned]
    table = ds.dataset(
        [str(path) for path in files],
        schema=schema,
        format=ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(dictionary_columns=names)),
        partitioning=ds.HivePartitioning(pa.schema(partitions)) if partitions else None,
        partition_base_dir=str(base) if partitions else None,
    )
    yield from table.scanner(columns=list(columns), use_threads=False).to_batches()


def columns_of(files: list[Path]) -> set[str]:
    """Names of all columns that any of the files has."""
    return {name for path in files for name in pq.read_schema(path).names}


class NameCodes:
    """Gives each distinct string a code in order of appearance, over many batches."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._codes = {name: code for code, name in enumerate(names)}

    @property
    def names(self) -> list[str]:
        """The strings seen, by code."""
        return list(self._codes)

    def encode(self, column: pa.Array) -> NDArray[np.int32]:
        """int32 [n] codes of a string column; -1 where null."""
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        table = np.array(
            [-1 if name is None else self._codes.setdefault(name, len(self._codes)) for name in
             encoded.dictionary.to_pylist()] + [-1],
            dtype=np.int32,
        )  # fmt: skip
        codes: NDArray[np.int32] = table[
            encoded.indices.fill_null(len(table) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        ]
        return codes


def integers(column: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 [n] values of an integer column (0 where null) and the places of its nulls. uint64 keeps its bits."""
    nulls = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)) if column.null_count else np.zeros(0)
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    return values.astype(np.int64, copy=False), nulls.astype(np.int64)
