"""Requests of the item service -> items of the log, or an InvalidRequest that names the place."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from pinrec_core.errors import InvalidRequest
from pinrec_core.items.log import Item
from pinrec_core.text_encoder import normalize_text
from services.proto import items_pb2

MAX_TEXT = 10_000
"""Characters of an item's text; n-grams of that many tell what it is about."""

MAX_TITLE = 1_000


def added_items(request: items_pb2.AddItemsRequest, widths: Collection[int]) -> list[Item]:
    """The request's items. `widths` are those of an embedding that an open release can use; empty = any.

    Raises InvalidRequest.
    """
    return [_added(item, f"items[{place}]", widths) for place, item in enumerate(request.items)]


def deleted_items(request: items_pb2.DeleteItemsRequest) -> list[Item]:
    """The request's items, as deleted."""
    return [Item(item_id, deleted=True) for item_id in request.item_ids]


def _added(item: items_pb2.Item, place: str, widths: Collection[int]) -> Item:
    embedding = np.array(item.embedding, np.float32)
    if bool(item.text) == bool(len(embedding)):
        given = "both" if item.text else "neither"
        raise InvalidRequest(f"{place} of text and embedding", given, "one of them")
    if item.text and not normalize_text(item.text):
        raise InvalidRequest(f"{place}.text", item.text, "a text with letters or digits")
    for field, most in (("text", MAX_TEXT), ("title", MAX_TITLE)):
        length = len(getattr(item, field))
        if length > most:
            raise InvalidRequest(f"{place}.{field}", f"{length} characters", f"at most {most}")
    if not np.isfinite(embedding).all():
        raise InvalidRequest(f"{place}.embedding", "NaN or infinity", "finite numbers")
    if len(embedding) and widths and len(embedding) not in widths:
        allowed = " or ".join(map(str, sorted(widths)))
        raise InvalidRequest(f"{place}.embedding", f"{len(embedding)} numbers", f"{allowed}, as the open releases have")
    return Item(item.item_id, item.text, item.title, embedding)
