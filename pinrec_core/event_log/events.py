"""The events of a folder as plain columns, read, checked and repaired: for training and for the batch view alike.

A column at a time and no loop over events: ten million of them take less than two gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm import tqdm

from pinrec_core.event_log.event_ids import derived_event_ids, name_hash
from pinrec_core.event_log.landing import landing_day, latest_ms
from pinrec_core.event_log.parquet import (
    EVENT_COLUMNS,
    OPTIONAL_EVENT_COLUMNS,
    UNREADABLE,
    NameCodes,
    check_schemas,
    columns_of,
    count_rows,
    find_files,
    integers,
    read_batches,
)
from pinrec_core.event_log.problems import Findings
from pinrec_core.schema import FIRST_WALL_CLOCK_MS, ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType
from pinrec_core.text_encoder import normalize_text, query_item_id

EVENTS = "events.parquet"
_READ_IF_PRESENT = {"event_id": "uint64", "text": "string"}
FIRST_PLAUSIBLE_MS = 100_000_000_000
"""March 1973: a wall-clock time below it is one in seconds."""
LAST_PLAUSIBLE_MS = 100_000_000_000_000
"""The year 5138: a time above it is one in micro- or nanoseconds."""


@dataclass
class EventLog:
    """Columns of equal length [E]; names are codes into `action_names` and `surface_names`."""

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.int32]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]
    """As the log gives them, 0 where it does not; `repair_events` derives the others."""
    landing_days: NDArray[np.int32] | None = None
    """Places in `day_names`; None where the log has no landing days."""
    listed: NDArray[np.bool_] | None = None
    """Whether items.parquet lists the item; None where only the events were read."""
    num_repeats: int = 0
    """Rows that `repair_events` dropped."""
    day_names: list[str] = field(default_factory=list)
    type_names: list[str] = field(default_factory=list)
    action_names: list[str] = field(default_factory=list)
    surface_names: list[str] = field(default_factory=list)
    query_texts: dict[int, str] = field(default_factory=dict)
    """Text of each search query by item id."""

    def __len__(self) -> int:
        return len(self.user_ids)

    def take(self, at: NDArray[Any]) -> None:
        """Keep the rows chosen by a mask or an order, column by column (so that one column at a time is copied)."""
        for column in fields(self):
            values = getattr(self, column.name)
            if isinstance(values, np.ndarray):
                setattr(self, column.name, values[at])

    def by_user(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Users int64 [U] ascending and offsets int64 [U + 1] of their rows; the log must be sorted by user."""
        starts = np.ones(len(self), dtype=bool)
        np.not_equal(self.user_ids[1:], self.user_ids[:-1], out=starts[1:])
        first = np.flatnonzero(starts)
        return self.user_ids[first], np.append(first, len(self)).astype(np.int64)

    def show(self, at: int) -> str:
        """One row in words, for messages."""
        action = self.action_names[self.actions[at]] if self.actions[at] >= 0 else "null"
        return f"user_id {self.user_ids[at]}, item_id {self.item_ids[at]}, {action}, {self.timestamps_ms[at]}"


def read_events(folder: Path, findings: Findings, progress: bool = False) -> EventLog | None:
    """Read and check the events of `folder`, in file order; None if they cannot be read at all.

    Item ids of search queries are replaced by the hash of their text (a repair, counted where they differed).
    """
    files = find_files(folder, "events", findings)
    if not files or not check_schemas(folder, files, EVENT_COLUMNS, OPTIONAL_EVENT_COLUMNS, findings):
        return None
    name = EVENTS if files[0].name == EVENTS else "events/"
    if not count_rows(files):
        findings.file(name, "has no rows")
        return None
    try:
        log = _Reader(files, folder / "events", name, findings).read(progress)
    except UNREADABLE as error:
        findings.file(name, f"cannot be read: {str(error).splitlines()[0]}")
        return None
    _check_times(log, name, findings)
    return log


def repair_events(log: EventLog, findings: Findings, name: str = EVENTS) -> None:
    """Give each event its id, drop rows that repeat one, and sort by user, time and id; what is found is counted.

    An id names an event of its user, as in the stores of the realtime view.
    """
    _set_early_aside(log, name, findings)
    is_given = log.event_ids != 0
    _derive_ids(log, ~is_given, name, findings)
    # Derived ids count occurrences of a landing day, so that within one only a given id can repeat.
    may_repeat = is_given.any() or len(log.day_names) > 1
    repeated = _find_repeats(log, name, findings) if may_repeat else np.zeros(len(log), dtype=bool)
    log.num_repeats = int(repeated.sum())
    log.take(_by_user_and_time(log, ~repeated, name, findings))


class _Reader:
    """Turns record batches into columns, remembering what nulls and queries it met."""

    def __init__(self, files: list[Path], base: Path, name: str, findings: Findings) -> None:
        self._files, self._base, self._name, self._findings = files, base, name, findings
        available = columns_of(files)
        optional = {name: kind for name, kind in _READ_IF_PRESENT.items() if name in available}
        self._columns = {**EVENT_COLUMNS, **optional}
        self._codes = {"item_type": NameCodes(ITEM_TYPE_NAMES), "action": NameCodes(), "surface": NameCodes()}
        self._nulls: dict[str, list[NDArray[np.int64]]] = {}
        self._ids_of_text: dict[str, int] = {}
        self._query_texts: dict[int, str] = {}
        self._textless: list[NDArray[np.int64]] = []
        self._renamed: list[NDArray[np.int64]] = []

    def read(self, progress: bool) -> EventLog:
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in self._columns if name != "text"}
        start, total = 0, count_rows(self._files)
        bar = tqdm(total=total, desc="reading events", unit="row", unit_scale=True, disable=not progress)
        for batch in read_batches(self._files, self._base, self._columns):
            values = {name: self._column(name, batch.column(name), start) for name in columns}
            texts = batch.column("text") if "text" in self._columns else pa.nulls(len(batch), pa.string())
            self._read_queries(values, texts, start)
            for name, part in values.items():
                columns[name].append(part)
            start += len(batch)
            bar.update(len(batch))
        bar.close()
        log = self._log({name: np.concatenate(columns.pop(name)) for name in list(columns)})
        self._report(log)
        return log

    def _column(self, name: str, column: pa.Array, start: int) -> NDArray[Any]:
        if name in self._codes:
            values: NDArray[Any] = self._codes[name].encode(column)
            nulls = np.flatnonzero(values < 0)
        else:
            values, nulls = integers(column)
        if len(nulls) and name != "event_id":
            self._nulls.setdefault(name, []).append(start + nulls)
        return values

    def _read_queries(self, values: dict[str, NDArray[Any]], texts: pa.Array, start: int) -> None:
        """Give each search_query row the id of its text; remember rows without text and rows whose id was another."""
        at = np.flatnonzero(values["item_type"] == ItemType.SEARCH_QUERY)
        if not len(at):
            return
        taken = texts.take(pa.array(at))
        encoded = taken if pa.types.is_dictionary(taken.type) else taken.cast(pa.string()).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        has_text = np.zeros(len(encoded.dictionary) + 1, dtype=bool)
        ids = np.zeros(len(encoded.dictionary) + 1, dtype=np.int64)
        for code, text in enumerate(encoded.dictionary.to_pylist()):
            if text is not None and text not in self._ids_of_text and normalize_text(text):
                self._ids_of_text[text] = query_item_id(text)
                self._query_texts.setdefault(self._ids_of_text[text], text)
            if text in self._ids_of_text:
                has_text[code], ids[code] = True, self._ids_of_text[text]
        self._textless.append(start + at[~has_text[codes]])
        named = at[has_text[codes]]
        wanted = ids[codes[has_text[codes]]]
        self._renamed.append(start + named[values["item_id"][named] != wanted])
        item_ids = values["item_id"].copy()
        item_ids[named] = wanted
        values["item_id"] = item_ids

    def _log(self, columns: dict[str, NDArray[Any]]) -> EventLog:
        num_rows = len(columns["user_id"])
        landing_days, day_names = _landing_days(self._files, self._base)
        return EventLog(
            user_ids=columns["user_id"],
            item_ids=columns["item_id"],
            item_types=columns["item_type"],
            actions=columns["action"],
            surfaces=columns["surface"],
            timestamps_ms=columns["timestamp_ms"],
            event_ids=columns.get("event_id", np.zeros(num_rows, dtype=np.int64)).view(np.uint64),
            landing_days=landing_days,
            day_names=day_names,
            type_names=self._codes["item_type"].names,
            action_names=self._codes["action"].names,
            surface_names=self._codes["surface"].names,
            query_texts=self._query_texts,
        )

    def _report(self, log: EventLog) -> None:
        findings, name = self._findings, self._name
        for column, parts in self._nulls.items():
            findings.rows((name, column), "is null", np.concatenate(parts), log.show)
        is_query = log.item_types == ItemType.SEARCH_QUERY
        findings.rows(
            (name, "item_type"), f"is unknown; allowed: {', '.join(ITEM_TYPE_NAMES)}",
            log.item_types >= len(ITEM_TYPE_NAMES), lambda row: repr(log.type_names[log.item_types[row]]),
        )  # fmt: skip
        findings.rows((name, "text"), "is empty for a search_query", np.concatenate([_NONE, *self._textless]), log.show)
        findings.rows(
            (name, "item_id"), "is not the 64-bit hash of the query's normalized text",
            np.concatenate([_NONE, *self._renamed]), log.show, repair="hashed from the text",
        )  # fmt: skip
        search = log.action_names.index(SEARCH_ACTION) if SEARCH_ACTION in log.action_names else -2
        findings.rows(
            (name, "action"), f"is unknown for a search_query; allowed: {SEARCH_ACTION}",
            is_query & (log.actions != search) & (log.actions >= 0), log.show,
        )  # fmt: skip
        findings.rows(
            (name, "action"), f"is {SEARCH_ACTION} on a pin; it belongs to search_query rows",
            ~is_query & (log.actions == search), log.show,
        )  # fmt: skip
        for column, codes, names in (
            ("action", log.actions, log.action_names),
            ("surface", log.surfaces, log.surface_names),
        ):
            if "" in names:
                findings.rows((name, column), "is empty", codes == names.index(""), log.show)


_NONE = np.zeros(0, dtype=np.int64)


def _landing_days(files: list[Path], base: Path) -> tuple[NDArray[np.int32] | None, list[str]]:
    """Landing day of each row of `files` under `base`, by its place in the ascending days; none in a log without."""
    days = [landing_day(path.relative_to(base).as_posix()) if path.is_relative_to(base) else "" for path in files]
    names = sorted(set(days))
    if names == [""]:
        return None, []
    rows = [pq.read_metadata(path).num_rows for path in files]
    return np.repeat(np.array([names.index(day) for day in days], dtype=np.int32), rows), names


def _check_times(log: EventLog, name: str, findings: Findings) -> None:
    times = log.timestamps_ms
    place = (name, "timestamp_ms")
    findings.rows(place, "is negative", times < 0, log.show)
    seconds = (times >= FIRST_WALL_CLOCK_MS) & (times < FIRST_PLAUSIBLE_MS)
    what = f"looks like seconds, must be milliseconds since 1970 (below {FIRST_WALL_CLOCK_MS:,}: the order only)"
    findings.rows(place, what, seconds, log.show)
    what = "looks like micro- or nanoseconds, must be milliseconds since 1970"
    findings.rows(place, what, times >= LAST_PLAUSIBLE_MS, log.show)


def _set_early_aside(log: EventLog, name: str, findings: Findings) -> None:
    """Drop events that are later than the day on which they landed."""
    if log.landing_days is None:
        return
    latest = np.array([latest_ms(day) if day else np.iinfo(np.int64).max for day in log.day_names])
    early = log.timestamps_ms > latest[log.landing_days]
    what = "is later than the day on which the event landed"
    findings.rows((name, "timestamp_ms"), what, early, log.show, repair="dropped: its clock was wrong")
    if early.any():
        log.take(~early)


def _derive_ids(log: EventLog, nameless: NDArray[np.bool_], name: str, findings: Findings) -> None:
    """Fill in the ids of the `nameless` rows. Equal ones are separate events, told apart by their occurrence."""
    if not nameless.any():
        return
    if nameless.all():
        log.event_ids, earlier = derived_event_ids(_id_keys(log), log.landing_days)
        equal = np.flatnonzero(earlier)
    else:
        days = None if log.landing_days is None else log.landing_days[nameless]
        log.event_ids[nameless], earlier = derived_event_ids((key[nameless] for key in _id_keys(log)), days)
        equal = np.flatnonzero(nameless)[earlier > 0]
    notice = "each is an event of its own; give events an event_id if some of these are repeated deliveries"
    findings.rows((name, ""), "equals an earlier row, and neither has an event_id", equal, log.show, notice=notice)


def _id_keys(log: EventLog) -> Iterator[NDArray[Any]]:
    """The columns that `derived_event_ids` takes, one at a time."""
    yield from (log.user_ids, log.item_ids, log.item_types)
    for names, codes in ((log.action_names, log.actions), (log.surface_names, log.surfaces)):
        yield np.array([name_hash(name) for name in names], dtype=np.uint64)[codes]
    yield log.timestamps_ms


def _find_repeats(log: EventLog, name: str, findings: Findings) -> NDArray[np.bool_]:
    """bool [E]: all but one of the rows of a user with one id; those that differ are counted apart.

    The newest stays, then the one that landed first, then the one of the smallest item, action and surface: what
    `batch_job/definition.py` keeps.
    """
    repeated = repeats([log.event_ids, log.user_ids])
    if not repeated.any():
        return repeated
    rows = np.flatnonzero(np.isin(log.event_ids, log.event_ids[repeated]))
    repeated[rows] = repeats([column[rows] for column in (log.event_ids, log.user_ids)], _by_preference(log, rows))
    columns = (log.event_ids, *_id_keys(log))
    equal = np.zeros(len(log), dtype=bool)
    equal[rows] = repeats([column[rows] for column in columns])
    place = (name, "event_id")
    findings.rows(place, "repeats that of the same user's equal row", repeated & equal, log.show, repair="dropped")
    what = "repeats that of another row of the same user, which says something else"
    findings.rows(place, what, repeated & ~equal, log.show, repair="dropped, the newest is kept")
    return repeated


def _by_preference(log: EventLog, rows: NDArray[np.int64]) -> list[NDArray[Any]]:
    """Which of `rows` with one id stays: keys for `repeats`."""
    keys: list[NDArray[Any]] = [
        np.argsort(np.argsort(names))[codes[rows]]
        for codes, names in ((log.surfaces, log.surface_names), (log.actions, log.action_names))
    ]
    keys += [log.item_types[rows], log.item_ids[rows]]
    if log.landing_days is not None:
        keys.append(log.landing_days[rows])
    return [*keys, -log.timestamps_ms[rows]]


def _by_user_and_time(log: EventLog, kept: NDArray[np.bool_], name: str, findings: Findings) -> NDArray[np.int64]:
    """The `kept` rows by user, time and event id; those that came after a newer row of their user are counted."""
    rows = np.argsort(log.user_ids, kind="stable")
    rows = rows if kept.all() else rows[kept[rows]]
    users, times = log.user_ids[rows], log.timestamps_ms[rows]
    late = rows[1:][(users[1:] == users[:-1]) & (times[1:] < times[:-1])]
    what = "is older than the same user's row before it"
    findings.rows((name, "timestamp_ms"), what, np.sort(late), log.show, repair="sorted by time")
    return rows[np.lexsort((log.event_ids[rows], times, users))]


def repeats(columns: list[NDArray[Any]], order_by: Sequence[NDArray[Any]] = ()) -> NDArray[np.bool_]:
    """bool [E]: whether a row of the same values in all `columns` [E] comes before, by the keys `order_by`, then as is.

    The keys are in the order of `numpy.lexsort`: the last one counts most.
    """
    order = np.lexsort([*order_by, *columns])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        placed = column[order]
        same &= placed[1:] == placed[:-1]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:][same]] = True
    return repeated
