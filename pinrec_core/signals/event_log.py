"""Reading a folder in the event-log contract into columns. A column at a time, no loop over events.

Letters: R rows of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.event_ids import derived_event_ids, name_hash
from pinrec_core.schema import ITEM_TYPE_NAMES, ItemType
from pinrec_core.text_encoder import normalize_text, query_item_id

_INTEGERS = ("user_id", "item_id", "timestamp_ms")
_STRINGS = ("item_type", "action", "surface")
_OPTIONAL = ("event_id", "text")


class LogColumns(NamedTuple):
    """The log, or one batch of it, as columns [R]; actions and surfaces as places in the names met so far."""

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]


@dataclass
class Names:
    """Names met so far, in order; shared by all batches of a log."""

    places: dict[str, int] = field(default_factory=dict)

    def encode(self, encoded: pa.DictionaryArray) -> NDArray[np.int32]:
        """Places of a dictionary-encoded column [R]; new names are appended."""
        found = [self.places.setdefault(name, len(self.places)) for name in encoded.dictionary.to_pylist()]
        return np.array(found, dtype=np.int32)[_indices(encoded)]

    def hashes(self) -> NDArray[np.uint64]:
        """`name_hash` of each name, in order."""
        return np.array([name_hash(name) for name in self.places], dtype=np.uint64)


@dataclass(frozen=True)
class EventLog:
    """The whole log: columns [R], and the texts of its search queries beside their item ids."""

    columns: LogColumns
    actions: Names
    surfaces: Names
    query_ids: NDArray[np.int64]
    query_texts: pa.Array


def read_event_log(folder: Path) -> EventLog:
    """Read `events.parquet`, or every Parquet file under `events/` in path order. Raises InvalidData.

    A search query's item id is the hash of its text, whatever the log says. Event ids that the log lacks (no column,
    null or 0) are derived from the rows, see `event_ids.derived_event_ids`.
    """
    actions, surfaces = Names(), Names()
    parts: list[LogColumns] = []
    query_ids, query_texts = [np.zeros(0, np.int64)], [pa.array([], pa.large_string())]
    for batch in _batches(folder):
        part = _columns(batch, actions, surfaces)
        parts.append(part)
        at = np.flatnonzero(part.item_types == ItemType.SEARCH_QUERY)
        query_texts.append(_texts(batch, at))
        query_ids.append(_query_ids(query_texts[-1], part.item_ids[at]))
        if len(at):
            part.item_ids[at] = query_ids[-1]
    if not parts:
        raise InvalidData(f"{folder.name}: the event log has no rows; at least one event is needed")
    columns = LogColumns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    columns = columns._replace(event_ids=_complete_ids(columns, actions, surfaces))
    return EventLog(columns, actions, surfaces, np.concatenate(query_ids), pa.concat_arrays(query_texts))


def _batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Non-empty batches of the contract's columns; hive partition folders give columns too."""
    single, partitioned = folder / "events.parquet", folder / "events"
    files = [single] if single.is_file() else sorted(partitioned.rglob("[!._]*.parquet"))
    if not files:
        raise InvalidData(f"{folder.name} has neither events.parquet nor Parquet files under events/")
    try:
        log = _dataset(files, folder)
        missing = [name for name in (*_INTEGERS, *_STRINGS) if name not in log.schema.names]
        if missing:
            raise InvalidData(f"{folder.name}: the event log lacks the columns {missing}; present: {log.schema.names}")
        wanted = [*_INTEGERS, *_STRINGS, *(name for name in _OPTIONAL if name in log.schema.names)]
        for batch in log.scanner(columns=wanted, use_threads=False).to_batches():
            if len(batch):
                yield batch
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{folder.name}: the event log cannot be read: {type(error).__name__}") from error


def _dataset(files: Sequence[Path], folder: Path) -> ds.Dataset:
    """All files under one schema: a file may lack an optional column, or have nothing but nulls in it."""
    names = [str(file) for file in files]
    options = {"format": "parquet", "partitioning": ds.HivePartitioning.discover(), "partition_base_dir": str(folder)}
    with_partitions = ds.dataset(names, **options).schema
    schemas = [_without_dictionaries(schema) for schema in (*map(pq.read_schema, names), with_partitions)]
    return ds.dataset(names, schema=pa.unify_schemas(schemas, promote_options="permissive"), **options)


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    """Dictionary-encoded columns as plain ones: files may differ in how they encode the same names."""
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    return pa.schema(plain)


def _columns(batch: pa.RecordBatch, actions: Names, surfaces: Names) -> LogColumns:
    user_ids, item_ids, timestamps_ms = (_integers(batch.column(name), name, pa.int64()) for name in _INTEGERS)
    item_types, action, surface = (_dictionary(batch.column(name), name) for name in _STRINGS)
    event_ids = np.zeros(len(batch), dtype=np.uint64)
    if "event_id" in batch.schema.names:
        event_ids = _integers(batch.column("event_id").fill_null(0), "event_id", pa.uint64())
    return LogColumns(
        user_ids,
        item_ids,
        _item_type_codes(item_types),
        actions.encode(action),
        surfaces.encode(surface),
        timestamps_ms,
        event_ids,
    )


def _integers(column: pa.Array, name: str, dtype: pa.DataType) -> NDArray[Any]:
    _refuse_nulls(column, name)
    if not pa.types.is_integer(column.type):
        raise InvalidData(f"event log: column {name} has type {column.type}; allowed: {dtype}")
    try:
        return np.array(column.cast(dtype).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid as error:
        raise InvalidData(f"event log: column {name} has values outside {dtype}") from error


def _dictionary(column: pa.Array, name: str) -> pa.DictionaryArray:
    _refuse_nulls(column, name)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InvalidData(f"event log: column {name} has type {column.type}; allowed: string")
    return column.dictionary_encode()


def _refuse_nulls(column: pa.Array, name: str) -> None:
    if column.null_count:
        raise InvalidData(f"event log: column {name} has {column.null_count} missing values; allowed: none")


def _item_type_codes(encoded: pa.DictionaryArray) -> NDArray[np.uint8]:
    found = encoded.dictionary.to_pylist()
    for name in found:
        if name not in ITEM_TYPE_NAMES:
            raise InvalidData(
                f"event log: column item_type has value {name!r}; allowed: {' or '.join(ITEM_TYPE_NAMES)}"
            )
    return np.array([ITEM_TYPE_NAMES.index(name) for name in found], np.uint8)[_indices(encoded)]


def _indices(encoded: pa.DictionaryArray) -> NDArray[np.int64]:
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _texts(batch: pa.RecordBatch, at: NDArray[np.int64]) -> pa.Array:
    """Texts of the rows `at` (the search queries), large_string, "" where missing."""
    if "text" not in batch.schema.names:
        return pa.repeat(pa.scalar("", pa.large_string()), len(at))
    return batch.column("text").take(pa.array(at)).cast(pa.large_string()).fill_null("")


def _query_ids(texts: pa.Array, given: NDArray[np.int64]) -> NDArray[np.int64]:
    """Hash of each text, the given id where it has no words: int64 [len(texts)]. Loops over distinct texts only."""
    encoded = texts.dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    has_words = np.array([bool(normalize_text(text)) for text in distinct], dtype=bool)
    ids = np.array([query_item_id(text) for text in distinct], dtype=np.int64)
    places = _indices(encoded)
    return np.where(has_words[places], ids[places], given)


def _complete_ids(columns: LogColumns, actions: Names, surfaces: Names) -> NDArray[np.uint64]:
    """The log's event ids, with derived ones where it gives none."""
    nameless = np.flatnonzero(columns.event_ids == 0)
    if not len(nameless):
        return columns.event_ids
    keys = (columns.user_ids, columns.item_ids, columns.item_types, actions.hashes()[columns.actions],
            surfaces.hashes()[columns.surfaces], columns.timestamps_ms)  # fmt: skip
    event_ids = columns.event_ids.copy()
    event_ids[nameless] = derived_event_ids(key[nameless] for key in keys)[0]
    return event_ids
