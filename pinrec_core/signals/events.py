"""One event, its stable id, and the bytes that it rests in.

An event id of 0 means "not given". The derived id is a 64-bit hash of (user_id, item_id, item_type, action, surface,
timestamp_ms) and of the occurrence number among equal rows: of one log for the batch view, of one call for an append.
It is the same in every process, so a retried append and the log that later holds the same event agree. `text` is left
out, since a search query's item_id is already the hash of its text.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.schema import ItemType

ROW_VERSION = 1
_HEADER = struct.Struct("<BBqHHI")
"""Version, item type, item_id, and the byte lengths of action, surface and text, which follow in UTF-8."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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


@lru_cache(maxsize=4_096)
def name_hash(name: str) -> int:
    """Stable uint64 of an action's or surface's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def derived_event_ids(keys: Sequence[NDArray[np.generic]]) -> NDArray[np.uint64]:
    """Ids of rows that came without one: uint64 [n], never 0.

    keys: the integer columns [n] user_id, item_id, item_type, hash of action, hash of surface, timestamp_ms, in this
    order. Equal rows are told apart by their occurrence number.
    """
    hashes = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        hashes = _mix(hashes + _GOLDEN + key.astype(np.uint64))
    ids = _mix(hashes + _occurrences(hashes) * _GOLDEN)
    return np.where(ids == 0, np.uint64(1), ids)


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
    ids = iter(derived_event_ids(keys).tolist())
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


def _occurrences(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many earlier rows have the same hash, uint64 [n]."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    places = np.arange(len(hashes))
    starts = np.ones(len(hashes), dtype=bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    occurrences = np.empty(len(hashes), dtype=np.uint64)
    occurrences[order] = places - np.maximum.accumulate(np.where(starts, places, 0))
    return occurrences


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finalizer of splitmix64: spreads every input bit over the whole word."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
