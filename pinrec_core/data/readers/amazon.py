"""Amazon reviews of one category, as McAuley's group ships them in 2014, 2018 and 2023, or the cut `amazon-beauty`.

    reviews_Beauty_5.json.gz + meta_Beauty.json.gz     2014, 5-core: reviewerID, asin, unixReviewTime (days, in s)
    Beauty_5.json.gz + meta_Beauty.json.gz             2018, 5-core: the same fields
    All_Beauty.jsonl(.gz) + meta_All_Beauty.jsonl(.gz) 2023: user_id, parent_asin, timestamp (ms)
    All_Beauty.csv(.gz) + meta_...                     2023, 5-core or ratings only: the same columns

    interactions.parquet + items.parquet               the cut: the sequences of S3-Rec, P5 and TIGER

SOURCE holds one file of reviews and at most one of meta data; all are JSON lines (2014's meta data: Python literals).
Every review is an event of the one outcome `review` on the one surface `shop`, whatever its stars, as in the published
benchmarks. Reviews of 2014 and 2018 tell the day only: events of equal time keep the order of the file (of the cut: its
`pos`) by their `event_id`, or are shuffled on request. User and item ids are strings: numbered by `string_ids`, with
the maps saved beside. Text is title, brand or store, and categories. Ni, Li and McAuley, 2019; Hou et al., 2024: for
research. No checksums are published with them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pinrec_core.data.readers.pins import Ids, one_name, pins, refuse_empty, write_items
from pinrec_core.data.readers.sorting import EventSorter
from pinrec_core.data.readers.streams import csv_batches, lines, parquet_table
from pinrec_core.data.readers.string_ids import id_of_name
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts

OUTCOME, SURFACE = "review", "shop"
CUT, CUT_ITEMS = "interactions.parquet", "items.parquet"
_CUT_TYPES = {"user": pa.int64(), "item": pa.int64(), "pos": pa.int64(), "timestamp": pa.int64()}
_CUT_ITEM_TYPES = {"item": pa.int64(), "title": pa.string(), "attributes": pa.string()}
_FIELDS_2014 = ("reviewerID", "asin", "unixReviewTime", 1_000)
_FIELDS_2023 = ("user_id", "parent_asin", "timestamp", 1)
"""Columns of a review, and milliseconds in its unit of time."""
_CSV_TYPES = {"user_id": pa.string(), "parent_asin": pa.string(), "timestamp": pa.int64()}
_SUFFIX = re.compile(r"\.(json|jsonl|csv)(\.gz)?$")
_META_ID = re.compile(r"""["'](?:parent_asin|asin)["']\s*:\s*["']([^"']+)["']""")
_BATCH = 100_000

_Row = tuple[str, str, int]
"""User name, item name, time in ms."""


def convert(
    source: Path, folder: Path, shuffle_ties: int | None = None, all_items: bool = False, progress: bool = False
) -> ReadSummary:
    """Write `folder` from one category of reviews, or the cut, in `source`.

    `shuffle_ties`: a seed; events of one user with equal times then come in random order. `all_items`: list items
    without a review as well. Raises InvalidData naming a missing or ambiguous file, a column or a line.
    """
    if (source / CUT).is_file():
        return _convert_cut(source, folder, shuffle_ties)
    reviews, meta = _find_files(source)
    facts = DatasetFacts(name=f"amazon-{_SUFFIX.sub('', reviews.name).removeprefix('reviews_')}", outcomes=(OUTCOME,))
    items = _Names()
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        for table in _tables(_read_reviews(reviews, progress), items):
            sorter.add(table)
        num_users, num_events = _write_events(writer, sorter, shuffle_ties, named=True)
        _write_items(writer, meta, items, all_items, progress)
        items.save(writer.staging / "item_ids.parquet")
        return refuse_empty(source, ReadSummary(num_users, len(items.ids), {OUTCOME: num_events}))


def _convert_cut(source: Path, folder: Path, shuffle_ties: int | None) -> ReadSummary:
    log = parquet_table(source / CUT, _CUT_TYPES).sort_by([("user", "ascending"), ("pos", "ascending")])
    items = parquet_table(source / CUT_ITEMS, _CUT_ITEM_TYPES)
    table = pa.table(
        {
            "user_id": log["user"],
            "timestamp_ms": pc.multiply(log["timestamp"], 1_000),
            "item_id": log["item"],
            "event_id": np.arange(1, len(log) + 1, dtype=np.uint64),
        }
    )
    facts = DatasetFacts(name=source.resolve().name, outcomes=(OUTCOME,))
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        sorter.add(table)
        num_users, num_events = _write_events(writer, sorter, shuffle_ties, named=False)
        titles = items["title"].to_pylist()
        attributes = [(text or "").replace("|", " ") for text in items["attributes"].to_pylist()]
        texts = [f"{title or ''} {words}".strip() for title, words in zip(titles, attributes, strict=True)]
        write_items(
            writer, items["item"].to_numpy(), text=pa.array(texts, pa.string()), title=pa.array(titles, pa.string())
        )
        return refuse_empty(source, ReadSummary(num_users, len(items), {OUTCOME: num_events}))


class _Names:
    """Item names with their ids, in order of appearance."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def number(self, names: list[str]) -> list[int]:
        """The id of each name, adding those that are new."""
        for name in names:
            if name not in self.ids:
                self.ids[name] = id_of_name(name)
        return [self.ids[name] for name in names]

    def save(self, path: Path) -> None:
        """Write the map, columns name and id."""
        pq.write_table(pa.table({"name": pa.array(list(self.ids), pa.string()), "id": list(self.ids.values())}), path)


def _find_files(source: Path) -> tuple[Path, Path | None]:
    """The file of reviews and that of meta data. Raises InvalidData where there are none or several."""
    files = sorted(path for path in source.iterdir() if path.is_file() and _SUFFIX.search(path.name))
    meta = [path for path in files if path.name.startswith("meta_")]
    reviews = [path for path in files if path not in meta]
    if len(reviews) != 1 or len(meta) > 1:
        names = ", ".join(path.name for path in files) or "none"
        raise InvalidData(
            f"{source} must hold one file of reviews and at most one meta_ file, each .json, .jsonl or .csv, plain or "
            f".gz; it has: {names}"
        )
    return reviews[0], meta[0] if meta else None


def _read_reviews(path: Path, progress: bool) -> Iterator[_Row]:
    if ".csv" in path.suffixes:
        for batch in csv_batches(path, _CSV_TYPES, progress):
            yield from zip(*(batch[name].to_pylist() for name in _CSV_TYPES), strict=True)
        return
    for number, line in enumerate(lines(path, progress), start=1):
        if line:
            yield _review(line, f"{path.name}, line {number}")


def _review(line: str, place: str) -> _Row:
    """One review of 2014 and 2018 (a parent is unknown, times in s) or of 2023 (parents, times in ms)."""
    try:
        row = json.loads(line)
        user, item, time, unit_ms = _FIELDS_2014 if "reviewerID" in row else _FIELDS_2023
        if row[user] is None or row[item] is None:
            raise ValueError
        return str(row[user]), str(row[item]), int(row[time]) * unit_ms
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidData(
            f"{place}: is no review with reviewerID, asin, unixReviewTime or user_id, parent_asin, timestamp"
        ) from error


def _tables(rows: Iterator[_Row], items: _Names) -> Iterator[pa.Table]:
    """The columns that are sorted, some rows at a time."""
    batch: list[_Row] = []
    arrived = 0
    for row in rows:
        batch.append(row)
        if len(batch) == _BATCH:
            yield _table(batch, arrived, items)
            arrived, batch = arrived + len(batch), []
    if batch:
        yield _table(batch, arrived, items)


def _table(batch: list[_Row], arrived: int, items: _Names) -> pa.Table:
    users, names, times = zip(*batch, strict=True)
    return pa.table(
        {
            "user_id": pa.array([id_of_name(user) for user in users], pa.int64()),
            "timestamp_ms": pa.array(times, pa.int64()),
            "item_id": pa.array(items.number(list(names)), pa.int64()),
            "event_id": np.arange(arrived + 1, arrived + 1 + len(batch), dtype=np.uint64),
            "user": pa.array(users, pa.string()),
        }
    )


def _write_events(writer: FolderWriter, sorter: EventSorter, shuffle_ties: int | None, named: bool) -> tuple[int, int]:
    """Write all events, and `user_ids.parquet` where users are `named`: the number of users and of events."""
    num_users = num_events = 0
    names_path = writer.staging / "user_ids.parquet"
    schema = pa.schema([("name", pa.string()), ("id", pa.int64())])
    maps = pq.ParquetWriter(names_path, schema) if named else None
    for part, table in enumerate(sorter.tables()):
        ids = table["event_id"].to_numpy()  # ascending within equal times
        if shuffle_ties is not None:
            table = _shuffled(table, np.random.default_rng([shuffle_ties, part]))
        users, first = np.unique(table["user_id"].to_numpy(), return_index=True)
        num_users, num_events = num_users + len(users), num_events + len(table)
        if maps is not None:
            maps.write_table(pa.table([table["user"].take(pa.array(first)), users], schema=schema))
        writer.events(
            user_id=table["user_id"].to_numpy(),
            item_id=table["item_id"].to_numpy(),
            item_type=pins(len(table)),
            action=one_name(len(table), OUTCOME),
            surface=one_name(len(table), SURFACE),
            timestamp_ms=table["timestamp_ms"].to_numpy(),
            event_id=ids,
        )
    if maps is not None:
        maps.close()
    return num_users, num_events


def _shuffled(table: pa.Table, rng: np.random.Generator) -> pa.Table:
    """The rows of equal user and time in random order; their places stay theirs."""
    keys = (rng.random(len(table)), table["timestamp_ms"].to_numpy(), table["user_id"].to_numpy())
    return table.take(pa.array(np.lexsort(keys)))


def _write_items(writer: FolderWriter, meta: Path | None, items: _Names, all_items: bool, progress: bool) -> None:
    """Items with what the meta data say of them, then those of which they say nothing."""
    described = Ids()
    seen: set[str] = set()  # the meta data of 2018 repeat items
    rows: list[tuple[int, str, str | None]] = []

    def write() -> None:
        ids, texts, titles = ([row[column] for row in rows] for column in range(3))
        columns = {"text": pa.array([text or None for text in texts], pa.string())}
        write_items(writer, np.array(ids, dtype=np.int64), **columns, title=pa.array(titles, pa.string()))
        described.add(np.array(ids, dtype=np.int64))
        rows.clear()

    for number, line in enumerate(lines(meta, progress) if meta else (), start=1):
        if all_items or any(name in items.ids for name in _META_ID.findall(line)):  # parsing is slow
            assert meta is not None
            name, text, title = _described(line, f"{meta.name}, line {number}")
            if name not in seen and (all_items or name in items.ids):
                seen.add(name)
                rows.append((items.number([name])[0], text, title))
        if len(rows) == _BATCH:
            write()
    write()
    known = Ids()
    known.add(np.array(list(items.ids.values()), dtype=np.int64))
    rows += [(int(item), "", None) for item in known.without(described)]
    write()


def _described(line: str, place: str) -> tuple[str, str, str | None]:
    """Item name, text and title of a line of meta data. Raises InvalidData if it is none."""
    row = _parsed(line, place)
    name = row.get("parent_asin") or row.get("asin")
    if name is None:
        raise InvalidData(f"{place}: has neither parent_asin nor asin")
    title = row.get("title")
    listed = row.get("category") or row.get("categories") or []
    nested = [name for part in listed for name in (part if isinstance(part, list) else [part])]
    words = [title, row.get("brand") or row.get("store"), *dict.fromkeys(map(str, nested))]
    return str(name), " ".join(str(word) for word in words if word), str(title) if title else None


def _parsed(line: str, place: str) -> dict[str, Any]:
    for parse in (json.loads, ast.literal_eval):
        try:
            row = parse(line)
        except (ValueError, SyntaxError):
            continue
        if isinstance(row, dict):
            return row
    raise InvalidData(f"{place}: is neither a JSON object nor a Python literal of one")
