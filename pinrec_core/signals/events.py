"""One event, the id that it gets where it came without one, and the bytes that it rests in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.event_ids import derived_event_ids, name_hash
from pinrec_core.schema import ItemType

ROW_VERSION = 1
_HEADER = struct.Struct("<BBqHHI")
"""Version, item type, item_id, and the byte lengths of action, surface and text, which follow in UTF-8."""


class Event(NamedTuple):
    """One logged engagement or search query. `event_id` is a uint64, 0 = not given; `text` is a search query's."""

    user_id: int
    item_id: int
    item_type: ItemType
    action: str
    surface: str
    timestamp_ms: int
    event_id: int = 0
    text: str = ""


def with_event_ids(events: Sequence[Event]) -> list[Event]:
    """The same events; those of id 0 get their derived one, with occurrence numbers counted within this call."""
    nameless = [event for event in events if event.event_id == 0]
    if not nameless:
        return list(events)
    keys = (
        np.array([event.user_id for event in nameless], dtype=np.int64),
        np.array([event.item_id for event in nameless], dtype=np.int64),
        np.array([event.item_type for event in nameless], dtype=np.uint8),
        np.array([name_hash(event.action) for event in nameless], dtype=np.uint64),
        np.array([name_hash(event.surface) for event in nameless], dtype=np.uint64),
        np.array([event.timestamp_ms for event in nameless], dtype=np.int64),
    )
    ids = iter(derived_event_ids(keys)[0].tolist())
    return [event if event.event_id else event._replace(event_id=next(ids)) for event in events]


def encode_row(event: Event) -> bytes:
    """The bytes of an event beside its key (user_id, timestamp_ms, event_id)."""
    action, surface, text = event.action.encode(), event.surface.encode(), event.text.encode()
    header = _HEADER.pack(ROW_VERSION, event.item_type, event.item_id, len(action), len(surface), len(text))
    return header + action + surface + text


def decode_row(user_id: int, timestamp_ms: int, event_id: int, row: bytes) -> Event:
    """Inverse of `encode_row`. Raises InvalidData on a version that this code does not know, or a cut row."""
    if not row or row[0] != ROW_VERSION:
        version = row[0] if row else None
        raise InvalidData(f"stored event of user {user_id} has row version {version}; known: {ROW_VERSION}")
    if len(row) < _HEADER.size:
        raise InvalidData(f"stored event of user {user_id} has {len(row)} bytes; at least {_HEADER.size} are needed")
    _, item_type, item_id, num_action, num_surface, num_text = _HEADER.unpack_from(row)
    surface_at = _HEADER.size + num_action
    text_at = surface_at + num_surface
    if len(row) != text_at + num_text:
        raise InvalidData(f"stored event of user {user_id} has {len(row)} bytes; its header says {text_at + num_text}")
    action, surface = row[_HEADER.size : surface_at].decode(), row[surface_at:text_at].decode()
    text = row[text_at:].decode()
    return Event(user_id, item_id, ItemType(item_type), action, surface, timestamp_ms, event_id, text)
