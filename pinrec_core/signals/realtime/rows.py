"""Stored events: the bytes that one rests in beside its key, and many read back as columns.

Reading never makes an object an event: fixed parts are one `np.frombuffer`, and the few distinct wordings of a read
(action, surface, text) are decoded once each.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import Unavailable
from pinrec_core.signals.events import Event

ROW_VERSION = 2
"""1 had the same bytes, in stores that sorted events of equal time the other way."""

_FIXED = np.dtype([("version", "u1"), ("item_type", "u1"), ("item_id", "<i8")])
_LENGTHS = struct.Struct("<HHI")
"""Bytes of action, surface and text, which follow in UTF-8."""


class Wording(NamedTuple):
    """What a row says in words; `text` is a search query's."""

    action: str
    surface: str
    text: str


class StoredEvents(NamedTuple):
    """Events of U users as columns [n], each user's newest first: rows `offsets[i]:offsets[i + 1]` are user i's.

    The order is that of (timestamp_ms, event_id), descending.
    """

    offsets: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]
    wordings: NDArray[np.int32]
    """Places in `distinct_wordings`."""
    distinct_wordings: list[Wording]


def encode_row(event: Event) -> bytes:
    """The bytes of an event beside its key (user_id, timestamp_ms, event_id)."""
    action, surface, text = event.action.encode(), event.surface.encode(), event.text.encode()
    lengths = _LENGTHS.pack(len(action), len(surface), len(text))
    fixed = bytes((ROW_VERSION, event.item_type)) + event.item_id.to_bytes(8, "little", signed=True)
    return fixed + lengths + action + surface + text


def stored_events(
    lengths: Sequence[int], timestamps_ms: NDArray[np.int64], event_ids: NDArray[np.uint64], rows: Sequence[bytes]
) -> StoredEvents:
    """Columns from rows of `encode_row`, user by user; `lengths` says how many each user has.

    Raises Unavailable on a row of an unknown version, or one that is cut.
    """
    try:
        fixed = np.frombuffer(b"".join([row[: _FIXED.itemsize] for row in rows]), _FIXED)
        places: dict[bytes, int] = {}
        wordings = [places.setdefault(row[_FIXED.itemsize :], len(places)) for row in rows]
        distinct = [_wording(words) for words in places]
    except (ValueError, struct.error) as error:
        raise Unavailable("stored events are damaged: a row is cut") from error
    unknown = fixed["version"][fixed["version"] != ROW_VERSION]
    if len(unknown):
        raise Unavailable(f"stored events have row version {unknown[0]}; known: {ROW_VERSION}")
    return StoredEvents(
        offsets=np.fromiter(accumulate(lengths, initial=0), np.int64, len(lengths) + 1),
        item_ids=fixed["item_id"].astype(np.int64),
        item_types=fixed["item_type"].copy(),
        timestamps_ms=timestamps_ms,
        event_ids=event_ids,
        wordings=np.array(wordings, dtype=np.int32),
        distinct_wordings=distinct,
    )


def no_events(num_users: int) -> StoredEvents:
    """What a store without any event reads."""
    return stored_events([0] * num_users, np.zeros(0, np.int64), np.zeros(0, np.uint64), [])


def _wording(words: bytes) -> Wording:
    num_action, num_surface, num_text = _LENGTHS.unpack_from(words)
    surface_at = _LENGTHS.size + num_action
    text_at = surface_at + num_surface
    if len(words) != text_at + num_text:
        raise ValueError("lengths do not add up")
    return Wording(
        words[_LENGTHS.size : surface_at].decode(), words[surface_at:text_at].decode(), words[text_at:].decode()
    )
