"""The items of the item log inside a data set, so that the next release holds them from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pinrec_core.data.dataset import Dataset
from pinrec_core.items.content import item_content
from pinrec_core.items.log import Item
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType


def carry_items(dataset: Dataset, items: Sequence[Item]) -> Dataset:
    """`dataset` with every item of the log (all of its states, in any order).

    An added item is a pin with its content, instead of what the event log said of it; the event log's engagements with
    it become targets. A deleted one keeps its content, which histories need, but will be in no index and no list.
    """
    added = [item for item in items if not item.deleted]
    content, scale = item_content(added, dataset.text_encoder)
    ids = np.array([item.item_id for item in added], dtype=np.int64)
    old = dataset.items
    kept = ~np.isin(old.ids, ids)
    ids = np.concatenate([old.ids[kept], ids])
    order = np.argsort(ids, kind="stable")
    table = ItemTable(
        ids=ids[order],
        types=np.concatenate([old.types[kept], np.full(len(added), ItemType.PIN, np.uint8)])[order],
        content=np.concatenate([old.content[kept], content])[order],
        scale=np.concatenate([old.scale[kept], scale])[order],
    )
    return replace(
        dataset,
        items=table,
        titles={
            **dataset.titles,
            **{item.item_id: item.title or item.text for item in added if item.title or item.text},
        },
        deleted=np.array([item.item_id for item in items if item.deleted], dtype=np.int64),
        items_sequence=max((item.sequence for item in items), default=0),
    )
