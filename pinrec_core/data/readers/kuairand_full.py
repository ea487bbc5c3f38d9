"""KuaiRand-Pure, -1K and -27K as their publisher ships them: CSV logs and features, in `data/` or beside each other.

    log_standard_4_08_to_4_21_<v>.csv  log_standard_4_22_to_5_08_<v>.csv   27K: each in _part1 and _part2
    log_random_4_22_to_5_08_<v>.csv                                        read on request: randomly exposed videos
    video_features_basic_<v>.csv                                           author, music, tags of the videos

The rule of `kuairand.py` makes events of impressions; every impression has its time and tab. Nothing else is read: the
statistics of videos cover the period that is predicted. Logs are sorted on disk, so that 27K's 322 million impressions
need no more memory than Pure's. CC BY-SA 4.0. Gao et al., KuaiRand, CIKM 2022; Zenodo record 10439422.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pinrec_core.data.readers.kuairand import FLAGS, NO_OUTCOME, OUTCOMES, flag_lists, outcome_of, words
from pinrec_core.data.readers.pins import Ids, no_texts, pins, refuse_empty, write_items
from pinrec_core.data.readers.sorting import EventSorter
from pinrec_core.data.readers.streams import csv_batches, find, need
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.event_log.events import repeats

_WEEKS = ("4_08_to_4_21", "4_22_to_5_08")
LOGS = {
    "pure": tuple(f"log_standard_{weeks}_pure.csv" for weeks in _WEEKS),
    "1k": tuple(f"log_standard_{weeks}_1k.csv" for weeks in _WEEKS),
    "27k": tuple(f"log_standard_{weeks}_27k_part{part}.csv" for weeks in _WEEKS for part in (1, 2)),
}
"""Files of each version's standard log."""
_LOG_TYPES = {name: pa.int64() for name in ("user_id", "video_id", "time_ms", "tab")} | {
    name: pa.int8() for name in ("is_hate", *FLAGS)
}
_ITEM_TYPES = {"video_id": pa.int64(), "author_id": pa.string(), "music_id": pa.string(), "tag": pa.string()}


def is_wanted(name: str) -> bool:
    """Whether a file of the publisher's archive is read."""
    return name.startswith(("log_standard_", "log_random_", "video_features_basic_"))


def convert(
    source: Path, folder: Path, random: bool = False, all_items: bool = False, progress: bool = False
) -> ReadSummary:
    """Write `folder` from a KuaiRand folder.

    `random`: read the randomly exposed impressions too; `all_items`: list videos without an engagement as well.
    Raises InvalidData naming a missing file or column.
    """
    version = next((v for v, names in LOGS.items() if find(source, names[0])), None)
    if version is None:
        raise InvalidData(f"{source} does not hold {' or '.join(names[0] for names in LOGS.values())} (plain or .gz)")
    names = LOGS[version] + ((f"log_random_4_22_to_5_08_{version}.csv",) if random else ())
    logs = [need(source, name) for name in names]
    features = need(source, f"video_features_basic_{version}.csv")
    counts = _Counts()
    facts = DatasetFacts(name=f"kuairand-{version}", outcomes=OUTCOMES)
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        for path in logs:
            for batch in csv_batches(path, _LOG_TYPES, progress):
                sorter.add(counts.engaged(batch))
        for table in sorter.tables():
            _write_events(writer, table, counts)
        _write_items(writer, features, counts, all_items, progress)
        return refuse_empty(source, counts.summary())


class _Counts:
    """What was met on the way."""

    def __init__(self) -> None:
        self.tabs: set[int] = set()
        self.items = Ids()
        self.users = self.num_items = self.idle = self.hated = self.repeated = 0
        self.events = np.zeros(len(OUTCOMES), dtype=np.int64)

    def engaged(self, batch: pa.RecordBatch) -> pa.Table:
        """The impressions with an engagement, in the columns that are sorted; the others are counted."""
        table = pa.Table.from_batches([batch])
        outcome = outcome_of(table)
        hated = (table["is_hate"].to_numpy() > 0) & (outcome != NO_OUTCOME)
        kept = (outcome != NO_OUTCOME) & ~hated
        self.idle += int((outcome == NO_OUTCOME).sum())
        self.hated += int(hated.sum())
        self.tabs |= set(np.unique(table["tab"].to_numpy()[kept]).tolist())
        rows = table.filter(pa.array(kept)).select(["user_id", "video_id", "time_ms", "tab", *FLAGS])
        rows = rows.rename_columns(["user_id", "item_id", "timestamp_ms", "tab", *FLAGS])
        return rows.append_column("outcome", pa.array(outcome[kept]))

    def summary(self) -> ReadSummary:
        """In words."""
        return ReadSummary(
            users=self.users,
            items=self.num_items,
            events={name: int(n) for name, n in zip(OUTCOMES, self.events, strict=True)},
            left_out={
                "impressions without engagement": self.idle,
                "hated": self.hated,
                "logged twice": self.repeated,
            },
        )


def _write_events(writer: FolderWriter, table: pa.Table, counts: _Counts) -> None:
    """Write a table of whole users, without what was logged twice."""
    keys = [table[name].to_numpy() for name in ("user_id", "item_id", "timestamp_ms", "tab", "outcome")]
    twice = repeats(keys)
    table = table.filter(pa.array(~twice))
    user_ids, item_ids = table["user_id"].to_numpy(), table["item_id"].to_numpy()
    outcome, tabs = table["outcome"].to_numpy(), np.array(sorted(counts.tabs))
    counts.repeated += int(twice.sum())
    counts.users += len(np.unique(user_ids))
    counts.events += np.bincount(outcome, minlength=len(OUTCOMES))
    counts.items.add(item_ids)
    surface = np.searchsorted(tabs, table["tab"].to_numpy())
    writer.events(
        user_id=user_ids,
        item_id=item_ids,
        item_type=pins(len(table)),
        action=NameColumn(outcome, OUTCOMES),
        surface=NameColumn(surface, [f"tab_{tab}" for tab in tabs]),
        timestamp_ms=table["timestamp_ms"].to_numpy(),
        actions=flag_lists(table),
    )


def _write_items(writer: FolderWriter, features: Path, counts: _Counts, all_items: bool, progress: bool) -> None:
    """Videos with their words, a batch at a time; last those that have an engagement and no features."""
    described = Ids()
    for batch in csv_batches(features, _ITEM_TYPES, progress):
        item_ids: NDArray[np.int64] = batch["video_id"].to_numpy()
        kept = np.full(len(batch), True) if all_items else counts.items.holds(item_ids)
        rows = batch.filter(pa.array(kept))
        columns = (rows[name].to_pylist() for name in ("author_id", "music_id", "tag"))
        texts = [words(*row) for row in zip(*columns, strict=True)]
        write_items(writer, item_ids[kept], text=pa.array(texts, pa.string()))
        described.add(item_ids[kept])
    bare = counts.items.without(described)
    write_items(writer, bare, text=no_texts(len(bare)))
    counts.num_items = len(described.values) + len(bare)
