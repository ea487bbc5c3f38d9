"""What the batch view is, said once: SQL that DuckDB and Spark both run, with the same functions over Arrow arrays.

`cleaned` turns rows of the log into events, one by one, and says of each row that is none why (`fate`). `view` takes
all events of some users to their histories:

1. An event without an id gets the derived one; equal rows count as separate events within one landing day.
2. Of the rows of a user with one id the one with the newest time stays, then the one that landed first. (With the
   newest time winning, what an earlier view cut off can never come back: yesterday's view and today's rows give the
   same histories as the whole log. That an id names one event is the log's promise: a row that gives an order only, of
   an id whose row with a clock's time has aged out, is not recognized any more.)
3. Of the events of the last `days` the newest `max_events` stay, in the order of (time, event id), and as many of those
   whose time only gives an order (`schema.FIRST_WALL_CLOCK_MS`): such never age.

Event ids are uint64 in the contract; both engines carry their bits as int64, so ids below 0 are the largest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinrec_core.event_log.event_ids import name_hash, numbered_event_ids
from pinrec_core.event_log.events import FIRST_PLAUSIBLE_MS, LAST_PLAUSIBLE_MS
from pinrec_core.event_log.landing import CLOCK_SKEW_MS
from pinrec_core.schema import FIRST_WALL_CLOCK_MS, ITEM_TYPE_NAMES, MAX_SEEN_ITEMS, SEARCH_ACTION, ItemType
from pinrec_core.text_encoder import normalize_text, query_item_id

NUM_BUCKETS = 64
"""Files of users that a version is split into; an engine need hold only one in memory."""
_PRIME = 65_521
"""Users are dealt to buckets by their id modulo this prime, so that ids in steps do not meet in one bucket."""

MILLISECONDS_A_DAY = 86_400_000
_QUERY = ITEM_TYPE_NAMES[ItemType.SEARCH_QUERY]

_EVENT_ID = "CAST(event_id AS DECIMAL(20, 0))"
_EVENT_ID_BITS = f"""CAST(CASE WHEN {_EVENT_ID} > 9223372036854775807
        THEN {_EVENT_ID} - 18446744073709551616 ELSE {_EVENT_ID} END AS BIGINT)"""

_CLEANED = """
SELECT
    lpad(CAST((user_id % {prime} + {prime}) % {prime} % {buckets} AS STRING), 3, '0') AS bucket,
    landed,
    user_id,
    CASE WHEN item_type = '{query}' THEN search_query_id(text) ELSE item_id END AS item_id,
    item_type,
    action,
    surface,
    timestamp_ms,
    NULLIF(event_id, 0) AS event_id,
    CASE WHEN item_type = '{query}' THEN text END AS text,
    {fate} AS fate
FROM (SELECT {columns} FROM {source}) AS log_rows
JOIN (VALUES {days}) AS landing_days(landing_day, latest_ms) ON landed = landing_day
"""

_VIEW = """
WITH numbered AS (
    SELECT *, CAST(row_number() OVER (
        PARTITION BY landed, user_id, item_id, item_type, action, surface, timestamp_ms, event_id IS NULL
        ORDER BY text NULLS FIRST
    ) - 1 AS BIGINT) AS earlier
    FROM {source}
), identified AS (
    SELECT bucket, landed, user_id, item_id, item_type, action, surface, timestamp_ms, text, COALESCE(
        event_id, derived_event_id(user_id, item_id, item_type, action, surface, timestamp_ms, earlier)
    ) AS event_id
    FROM numbered
), delivered AS (
    SELECT *, row_number() OVER (
        PARTITION BY user_id, event_id
        ORDER BY timestamp_ms DESC, landed, item_id, item_type, action, surface, text NULLS FIRST
    ) AS delivery
    FROM identified
), placed AS (
    SELECT *, row_number() OVER (
        PARTITION BY user_id, timestamp_ms < {first_wall_clock_ms}
        ORDER BY timestamp_ms DESC, event_id < 0 DESC, event_id DESC
    ) AS place
    FROM delivered
    WHERE delivery = 1
)
SELECT bucket, user_id, timestamp_ms, event_id, item_id, item_type, action, surface, text, landed
FROM placed
WHERE place <= {max_events} AND (timestamp_ms >= {oldest_ms} OR timestamp_ms < {first_wall_clock_ms})
"""

ORDER = ("bucket", "user_id", "timestamp_ms", "event_id < 0", "event_id")
"""How the rows of a view lie in its files."""

SET_ASIDE = "is later than its landing allows"
"""Fate of rows that a wrong clock stamped: counted and left out, where every other fate is an error."""


@dataclass(frozen=True)
class ViewDefinition:
    """What the rows of a view are; two views of one log and one definition hold the same rows."""

    max_events: int = MAX_SEEN_ITEMS
    """Newest events kept of each user."""
    days: int = 365
    """How far before the newest event of all a history goes back."""

    def facts(self) -> dict[str, Any]:
        """Plain values for the manifest; unequal where the rows may be."""
        text = f"{_CLEANED}{_VIEW}{ORDER}{sorted(_fates(()).items())}{CLOCK_SKEW_MS}{_PRIME}"
        return {**asdict(self), "buckets": NUM_BUCKETS, "sql": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def view(self, source: str, watermark_ms: int) -> str:
        """Rows of the view from `source`: columns of `cleaned` (without fate), all events of each of its users."""
        return _VIEW.format(
            source=source,
            max_events=self.max_events,
            oldest_ms=watermark_ms - self.days * MILLISECONDS_A_DAY,
            first_wall_clock_ms=FIRST_WALL_CLOCK_MS,
        )


def cleaned(source: str, columns: Iterable[str], latest_ms: Mapping[str, int], actions: Iterable[str]) -> str:
    """Every row of `source` (the log's Parquet, with the `columns` that it has) as an event, or with its fate.

    latest_ms: by landing day the latest time that an event may bear; of a log without days, the day is "".
    actions: the only ones allowed; none = any.
    """
    present = set(columns)
    typed = [
        *(f"CAST({name} AS BIGINT) AS {name}" for name in ("user_id", "item_id", "timestamp_ms")),
        *(f"CAST({name} AS STRING) AS {name}" for name in ("item_type", "action", "surface")),
        f"{_EVENT_ID_BITS if 'event_id' in present else 'CAST(NULL AS BIGINT)'} AS event_id",
        f"CAST({'text' if 'text' in present else 'NULL'} AS STRING) AS text",
        f"{chr(39) * 2 if '' in latest_ms else 'CAST(day AS STRING)'} AS landed",
    ]
    fate = " ".join(f"WHEN {rule} THEN '{name}'" for name, rule in _fates(actions).items())
    return _CLEANED.format(
        source=source,
        columns=", ".join(typed),
        days=", ".join(f"('{day}', {last})" for day, last in latest_ms.items()),
        fate=f"CASE {fate} END",
        query=_QUERY,
        prime=_PRIME,
        buckets=NUM_BUCKETS,
    )


def counted(source: str) -> str:
    """Rows of `cleaned` by landing day and fate, the newest time of each, and how many have a known surface."""
    return f"""SELECT landed, fate, count(*) AS num_rows, max(timestamp_ms) AS newest_ms,
        count_if(surface <> 'unknown') AS num_known FROM {source} GROUP BY landed, fate ORDER BY landed, fate"""


def _fates(actions: Iterable[str]) -> dict[str, str]:
    """What is wrong with a row, and the rule that finds it; the first that holds is said."""
    allowed = ", ".join(quoted(name) for name in (*actions, SEARCH_ACTION))
    types = ", ".join(map(quoted, ITEM_TYPE_NAMES))
    names = ("item_type", "action", "surface")
    fates = {f"column {name}: is null": f"{name} IS NULL" for name in ("user_id", "item_id", *names, "timestamp_ms")}
    fates |= {f"column {name}: is empty": f"{name} = ''" for name in names[1:]}
    fates |= {
        f"column item_type: is unknown; allowed: {', '.join(ITEM_TYPE_NAMES)}": f"item_type NOT IN ({types})",
        "column text: is empty for a search_query": f"item_type = '{_QUERY}' AND search_query_id(text) IS NULL",
        f"column action: is unknown for a search_query; allowed: {SEARCH_ACTION}": (
            f"item_type = '{_QUERY}' AND action <> '{SEARCH_ACTION}'"
        ),
        f"column action: is {SEARCH_ACTION} on a pin": f"item_type <> '{_QUERY}' AND action = '{SEARCH_ACTION}'",
        "column timestamp_ms: is negative": "timestamp_ms < 0",
        "column timestamp_ms: looks like seconds, must be milliseconds since 1970": (
            f"timestamp_ms >= {FIRST_WALL_CLOCK_MS} AND timestamp_ms < {FIRST_PLAUSIBLE_MS}"
        ),
        "column timestamp_ms: looks like micro- or nanoseconds, must be milliseconds since 1970": (
            f"timestamp_ms >= {LAST_PLAUSIBLE_MS}"
        ),
    }
    if list(actions):
        fates["column action: is unknown; dataset.json says which are allowed"] = f"action NOT IN ({allowed})"
    return {**fates, SET_ASIDE: "timestamp_ms > latest_ms"}


def quoted(name: str) -> str:
    """A string in SQL; what the engines escape in different ways is spelled by its number."""
    spelled = re.sub(r"['\\]", lambda match: f"' || chr({ord(match[0])}) || '", name)
    return f"'{spelled}'"


def search_query_id(texts: pa.Array) -> pa.Array:
    """SQL function: item id int64 of each query text [n], null where it has no letter or digit."""
    encoded = texts.dictionary_encode()
    ids = [query_item_id(text) if text and normalize_text(text) else None for text in encoded.dictionary.to_pylist()]
    return pa.array(ids, pa.int64()).take(encoded.indices)


def derived_event_id(
    user_id: pa.Array,
    item_id: pa.Array,
    item_type: pa.Array,
    action: pa.Array,
    surface: pa.Array,
    timestamp_ms: pa.Array,
    earlier: pa.Array,
) -> pa.Array:
    """SQL function: the bits int64 [n] of `event_log.event_ids`, given how many earlier rows equal each."""
    types = pc.index_in(item_type, pa.array(ITEM_TYPE_NAMES))
    keys = (user_id, item_id, types, _name_hashes(action), _name_hashes(surface), timestamp_ms)
    ids = numbered_event_ids((_numbers(key) for key in keys), _numbers(earlier))
    return pa.array(ids.view(np.int64))


FUNCTIONS: dict[str, tuple[Callable[..., pa.Array], tuple[str, ...]]] = {
    search_query_id.__name__: (search_query_id, ("STRING",)),
    derived_event_id.__name__: (
        derived_event_id, ("BIGINT", "BIGINT", "STRING", "STRING", "STRING", "BIGINT", "BIGINT"),
    ),
}  # fmt: skip
"""By their name in SQL: the functions and the SQL types of their arguments; all return BIGINT."""


def _name_hashes(names: pa.Array) -> pa.Array:
    encoded = names.dictionary_encode()
    hashes = [None if name is None else name_hash(name) for name in encoded.dictionary.to_pylist()]
    return pa.array(hashes, pa.uint64()).take(encoded.indices)


def _numbers(column: pa.Array) -> np.ndarray[Any, Any]:
    """Nulls become 0: what is made of them belongs to rows that have a fate and is never used."""
    filled: np.ndarray[Any, Any] = column.fill_null(0).to_numpy(zero_copy_only=False)
    return filled
