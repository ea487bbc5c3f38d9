"""Every item of the log, from its folder or from the service that owns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pinrec_core.errors import InvalidConfig
from pinrec_core.items.log import Item, read_items
from services.common.client import connect
from services.proto.items_pb2 import ItemState, ListItemsRequest
from services.proto.items_pb2_grpc import ItemServiceStub

_TIMEOUT_S = 30.0


def items_at(where: str) -> list[Item]:
    """Items in their newest state, oldest change first. `where` is a folder or HOST:PORT.

    Raises InvalidConfig if it is neither, Unavailable if it cannot be read.
    """
    if (Path(where) / "CURRENT").is_file():  # opening any other folder would leave files of RocksDB in it
        return read_items(Path(where))
    if not where.rpartition(":")[2].isdigit():
        raise InvalidConfig(f"--items has value {where!r}; allowed: the folder of an item log, or HOST:PORT")
    items: list[Item] = []
    with connect(where, ItemServiceStub) as stub:
        more = True
        while more:
            after = items[-1].sequence if items else 0
            page = stub.ListItems(ListItemsRequest(after_sequence=after), timeout=_TIMEOUT_S)
            items += [_item(state) for state in page.items]
            more = page.more
    return items


def _item(state: ItemState) -> Item:
    given = state.item
    embedding = np.array(given.embedding, np.float32)
    return Item(given.item_id, given.text, given.title, embedding, state.deleted, state.sequence)
