"""A log whose user or item ids are strings, in the contract's columns otherwise: ids become int64, once.

An id's number is the signed 64-bit BLAKE2b hash of its bytes: the same in every process and on every day, so that
tomorrow's log and a live event need no shared table. The maps are saved beside: `user_ids.parquet` and
`item_ids.parquet`, each with columns name and id. Columns that hold integers already are kept.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import read_facts
from pinrec_core.event_log.parquet import find_files
from pinrec_core.event_log.problems import Findings, raise_errors

_ID_COLUMNS = {"user_id": "user_ids", "item_id": "item_ids"}


def id_of_name(name: str) -> int:
    """Signed int64 of a string id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def convert(source: Path, folder: Path) -> ReadSummary:
    """Write `folder` from a folder in the contract whose ids may be strings. Raises InvalidData."""
    findings = Findings()
    facts = read_facts(source, findings)
    files = {name: find_files(source, name, findings) for name in ("events", "items")}
    raise_errors(str(source), findings.problems)
    maps: dict[str, dict[str, int]] = {column: {} for column in _ID_COLUMNS}
    actions: dict[str, int] = {}
    num_items = 0
    with FolderWriter(folder, facts) as writer:
        for name, append in (("items", writer.items), ("events", writer.events)):
            # A dataset's own schema is its first file's: the others are cast to it.
            for batch in ds.dataset([str(path) for path in files[name]], partition_base_dir=str(source / name),
                                    partitioning="hive").to_batches():  # fmt: skip
                columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                for column in _ID_COLUMNS.keys() & columns.keys():
                    columns[column] = _numbered(columns[column], maps[column], f"{name}.parquet, column {column}")
                append(**columns)
                num_items += len(batch) if name == "items" else 0
                for row in columns["action"].value_counts().tolist() if "action" in columns else []:
                    actions[str(row["values"])] = actions.get(str(row["values"]), 0) + int(row["counts"])
        for column, file in _ID_COLUMNS.items():
            table = pa.table({"name": pa.array(list(maps[column]), pa.string()), "id": list(maps[column].values())})
            pq.write_table(table, writer.staging / f"{file}.parquet")
    return ReadSummary(users=len(maps["user_id"]), items=num_items, events=actions)


def _numbered(column: pa.Array, known: dict[str, int], place: str) -> pa.Array:
    """int64 [n] of a string column, adding to `known`; an integer column as it is."""
    if pa.types.is_integer(column.type):
        return column
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if not (pa.types.is_string(encoded.type.value_type) or pa.types.is_large_string(encoded.type.value_type)):
        raise InvalidData(f"{place}: has type {column.type}, must be a string or an integer")
    names = encoded.dictionary.to_pylist()
    for name in names:
        if name not in known:
            known[name] = id_of_name(name)
    return pa.array([known[name] for name in names], pa.int64()).take(encoded.indices)
