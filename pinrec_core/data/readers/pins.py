"""What readers of logs without search queries share: rows of pins, and the items that the events name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import Column, FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType


def pins(count: int) -> NameColumn:
    """The item_type column of `count` pins."""
    return NameColumn(np.full(count, ItemType.PIN), ITEM_TYPE_NAMES)


def one_name(count: int, name: str) -> NameColumn:
    """A column that holds the same name everywhere."""
    return NameColumn(np.zeros(count), [name])


def write_items(writer: FolderWriter, item_ids: NDArray[np.int64], **columns: Column) -> None:
    """Append pins: int64 [n] and text or title columns of that length."""
    writer.items(item_id=item_ids, item_type=pins(len(item_ids)), **columns)


def no_texts(count: int) -> pa.Array:
    """A text column of nulls: zero content, which the event-log contract allows and counts."""
    return pa.nulls(count, pa.string())


class Ids:
    """A growing set of int64 ids, as one sorted array."""

    def __init__(self) -> None:
        self.values = np.zeros(0, dtype=np.int64)
        """int64 [n], ascending, each once."""

    def add(self, ids: NDArray[np.int64]) -> None:
        """Take in int64 [m], repeats allowed."""
        self.values = np.union1d(self.values, ids)

    def holds(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each id is in the set: int64 [m] -> bool [m]."""
        if not len(self.values):
            return np.zeros(len(ids), dtype=bool)
        at = np.minimum(np.searchsorted(self.values, ids), len(self.values) - 1)
        held: NDArray[np.bool_] = self.values[at] == ids
        return held

    def without(self, other: Ids) -> NDArray[np.int64]:
        """Ids that `other` lacks: int64 [m], ascending."""
        return self.values[~other.holds(self.values)]


def refuse_empty(source: Path, summary: ReadSummary) -> ReadSummary:
    """The summary. Raises InvalidData if no engagement was written: searches alone train nothing."""
    if not sum(count for action, count in summary.events.items() if action != SEARCH_ACTION):
        raise InvalidData(f"{source} holds no event that this reader keeps")
    return summary
