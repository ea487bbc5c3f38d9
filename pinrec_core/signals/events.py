"""One event, and the id that it gets where it came without one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pinrec_core.event_log.event_ids import derived_event_ids, name_hash
from pinrec_core.schema import ItemType


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
