"""RetailRocket: a shop's views, carts and purchases, as Kaggle ships it, or the cut of its buyers in two Parquet files.

    events.csv                                    timestamp (ms), visitorid, event, itemid, transactionid
    item_properties_part1.csv, _part2.csv         timestamp, itemid, property, value: read for `categoryid` only
    category_tree.csv                             categoryid, parentid

    interactions.parquet, test_target.parquet     the cut: a row for each user, item and action, times in seconds

Outcomes are buy (`transaction`), cart (`addtocart`) and view; the one surface is `shop`. Events of equal time keep the
order of the log by their `event_id`. An item's text is its first known category and all above it; other properties are
hashed by the publisher and not read. The cut's held-out purchases have no time and are left out.
CC BY-NC-SA 4.0. Retailrocket recommender system dataset, 2016.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinrec_core.data.readers.pins import Ids, no_texts, one_name, pins, refuse_empty, write_items
from pinrec_core.data.readers.sorting import EventSorter
from pinrec_core.data.readers.streams import csv_batches, need, parquet_table
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.event_log.events import repeats

OUTCOMES = ("buy", "cart", "view")
"""Strongest first."""
SURFACE = "shop"
CUT, CUT_TARGETS = "interactions.parquet", "test_target.parquet"
_PLACES = {"transaction": 0, "addtocart": 1, "view": 2}
_CUT_PLACES = {"buy": 0, "cart": 1, "view": 2}
_EVENT_TYPES = {
    "timestamp": pa.int64(), "visitorid": pa.int64(), "event": pa.string(), "itemid": pa.int64(),
    "transactionid": pa.string(),
}  # fmt: skip
_PROPERTY_TYPES = {"timestamp": pa.int64(), "itemid": pa.int64(), "property": pa.string(), "value": pa.string()}
_TREE_TYPES = {"categoryid": pa.int64(), "parentid": pa.string()}
_CUT_TYPES = {"user": pa.int64(), "item": pa.int64(), "action": pa.string(), "timestamp": pa.int64()}


def is_wanted(name: str) -> bool:
    """Whether a file of the publisher's archive is read."""
    return name.startswith(("events.csv", "item_properties_part", "category_tree.csv"))


def convert(source: Path, folder: Path, all_items: bool = False, progress: bool = False) -> ReadSummary:
    """Write `folder` from the full folder or the cut in `source`, whichever it holds.

    `all_items`: list the full folder's items without an event as well. Raises InvalidData naming a missing file or
    column, or an unknown event.
    """
    if (source / CUT).is_file():
        return _convert_cut(source, folder)
    events = need(source, "events.csv")
    properties = [need(source, f"item_properties_part{part}.csv") for part in (1, 2)]
    tree = need(source, "category_tree.csv")
    counts = _Counts()
    facts = DatasetFacts(name="retailrocket", outcomes=OUTCOMES)
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        arrived = 0
        for batch in csv_batches(events, _EVENT_TYPES, progress):
            sorter.add(_columns(batch, arrived))
            arrived += len(batch)
        for table in sorter.tables():
            _write_events(writer, table, counts)
        _write_items(writer, properties, _parents(tree, progress), counts, all_items, progress)
        return refuse_empty(source, counts.summary({"logged twice": counts.repeated}))


def _convert_cut(source: Path, folder: Path) -> ReadSummary:
    log = parquet_table(source / CUT, _CUT_TYPES)
    targets = parquet_table(source / CUT_TARGETS, {"user": pa.int64(), "item": pa.int64()})
    counts = _Counts()
    facts = DatasetFacts(name="retailrocket-mb", outcomes=OUTCOMES)
    table = pa.table(
        {
            "user_id": log["user"],
            "timestamp_ms": pc.multiply(log["timestamp"], 1_000),
            "item_id": log["item"],
            "outcome": _outcomes(log["action"], _CUT_PLACES, CUT),
            "transaction": pa.nulls(len(log), pa.string()),
            "event_id": np.arange(1, len(log) + 1, dtype=np.uint64),
        }
    )
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        sorter.add(table)
        for part in sorter.tables():
            _write_events(writer, part, counts)
        write_items(writer, counts.items.values, text=no_texts(len(counts.items.values)))
        counts.num_items = len(counts.items.values)
        left_out = {"logged twice": counts.repeated, "held-out purchases without a time": len(targets)}
        return refuse_empty(source, counts.summary(left_out))


class _Counts:
    """What was met on the way."""

    def __init__(self) -> None:
        self.items = Ids()
        self.users = self.num_items = self.repeated = 0
        self.events = np.zeros(len(OUTCOMES), dtype=np.int64)

    def summary(self, left_out: dict[str, int]) -> ReadSummary:
        """In words."""
        events = {name: int(n) for name, n in zip(OUTCOMES, self.events, strict=True)}
        return ReadSummary(self.users, self.num_items, events, left_out)


def _columns(batch: pa.RecordBatch, arrived: int) -> pa.Table:
    """The columns that are sorted; `arrived` events came before."""
    return pa.table(
        {
            "user_id": batch["visitorid"],
            "timestamp_ms": batch["timestamp"],
            "item_id": batch["itemid"],
            "outcome": _outcomes(batch["event"], _PLACES, "events.csv"),
            "transaction": batch["transactionid"],
            "event_id": np.arange(arrived + 1, arrived + 1 + len(batch), dtype=np.uint64),
        }
    )


def _outcomes(names: pa.Array, places: dict[str, int], file: str) -> pa.Array:
    """int32 [n]: place in OUTCOMES of each event. Raises InvalidData naming an unknown one."""
    found = pc.index_in(names, pa.array(list(places)))
    if found.null_count:
        unknown = names.filter(pc.is_null(found))[0].as_py()
        raise InvalidData(f"{file} has the event {unknown!r}; allowed: {', '.join(places)}")
    return found


def _write_events(writer: FolderWriter, table: pa.Table, counts: _Counts) -> None:
    """Write a table of whole users, without what was logged twice."""
    purchase = table["transaction"].combine_chunks().dictionary_encode().indices.fill_null(-1)
    keys = [table[name].to_numpy() for name in ("user_id", "item_id", "timestamp_ms", "outcome")]
    twice = repeats([*keys, purchase.to_numpy()])
    table = table.filter(pa.array(~twice))
    user_ids, item_ids, outcome = (table[name].to_numpy() for name in ("user_id", "item_id", "outcome"))
    counts.repeated += int(twice.sum())
    counts.users += len(np.unique(user_ids))
    counts.events += np.bincount(outcome, minlength=len(OUTCOMES))
    counts.items.add(item_ids)
    writer.events(
        user_id=user_ids,
        item_id=item_ids,
        item_type=pins(len(table)),
        action=NameColumn(outcome, OUTCOMES),
        surface=one_name(len(table), SURFACE),
        timestamp_ms=table["timestamp_ms"].to_numpy(),
        event_id=table["event_id"].to_numpy(),
    )


def _parents(path: Path, progress: bool) -> dict[int, int]:
    """The category above each category; roots are absent."""
    rows = [row for batch in csv_batches(path, _TREE_TYPES, progress) for row in batch.to_pylist()]
    return {row["categoryid"]: int(row["parentid"]) for row in rows if row["parentid"]}


def _write_items(
    writer: FolderWriter,
    properties: list[Path],
    parents: dict[int, int],
    counts: _Counts,
    all_items: bool,
    progress: bool,
) -> None:
    """Items in ascending order with their categories' words; one without a category has no text."""
    first: dict[int, tuple[int, str]] = {}  # item -> (time, category)
    for path in properties:
        for batch in csv_batches(path, _PROPERTY_TYPES, progress):
            if all_items:
                counts.items.add(batch["itemid"].to_numpy())
            of_category = batch.filter(pc.equal(batch["property"], "categoryid"))
            for time, item, category in zip(
                *(of_category[name].to_pylist() for name in ("timestamp", "itemid", "value")), strict=True
            ):
                if item not in first or time < first[item][0]:
                    first[item] = (time, category)
    ids = counts.items.values
    texts = [_path(int(first[item][1]), parents) if item in first else None for item in ids.tolist()]
    write_items(writer, ids, text=pa.array(texts, pa.string()))
    counts.num_items = len(ids)


def _path(category: int, parents: dict[int, int]) -> str:
    """Words of a category and all above it."""
    words: list[str] = []
    at: int | None = category
    while at is not None and f"category{at}" not in words:  # a circle in the tree ends too
        words.append(f"category{at}")
        at = parents.get(at)
    return " ".join(words)
