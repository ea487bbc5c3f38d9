"""The event-log contract: what a data folder must hold, checked and repaired in one place for every reader of it.

A folder holds

- `events.parquet`, or a partitioned `events/`: user_id int64, item_id int64, item_type (pin, search_query), action,
  surface, timestamp_ms int64; optional event_id uint64, text (search_query rows need it), actions list<string>;
- `items.parquet`: item_id int64, item_type; optional embedding list<float>, text, title, url;
- `dataset.json`, optional: name, outcomes (strongest first), search_surfaces, actions (any other action is an error).

`events/day=YYYY-MM-DD/` are landing days (landing.py). Events of equal time are ordered by event id, everywhere.
A timestamp below `schema.FIRST_WALL_CLOCK_MS` gives the order only; the surface `unknown` is the unknown code.

Errors: a missing file or column, a wrong type, nulls, unknown item types or actions, negative times, times in seconds
or microseconds, an embedding with NaN or of another length, a search query without text, no event of a listed pin, no
known surface.
Repairs, each counted and reported: rows that repeat an event_id of their user dropped (the newest is kept), disorder
sorted, events later than their landing day dropped, item ids of search queries hashed from their text, the first of
items with one id kept, zero content for items with neither embedding nor text.
Notices, counted and reported too: equal rows without an event_id (null and 0 are none), which are separate events told
apart by their occurrence within a landing day; and pins that items.parquet lacks, which stay in histories as context
with zero content, and are never targets, negatives or candidates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinrec_core.event_log.catalog import ITEMS, Catalog, read_items
from pinrec_core.event_log.events import EVENTS, EventLog, read_events, repair_events
from pinrec_core.event_log.problems import Findings, Problem, raise_errors
from pinrec_core.schema import SEARCH_ACTION, ItemType

FACTS = "dataset.json"
UNKNOWN_SURFACE = "unknown"
"""Surface of events whose surface was not recorded; it has no code of its own."""

_KINDS = ("error", "repair", "notice")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetFacts:
    """What the optional dataset.json says."""

    name: str
    outcomes: tuple[str, ...] = ()
    """Strongest first; empty = every action of a pin, rarest first."""
    search_surfaces: tuple[str, ...] = ()
    """Empty = the surfaces on which a search query was logged."""
    actions: tuple[str, ...] = ()
    """Empty = any action is allowed."""

    def save(self, folder: Path) -> None:
        """Write dataset.json."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        (folder / FACTS).write_text(json.dumps(values, indent=1) + "\n")


@dataclass(frozen=True)
class Folder:
    """A data folder that keeps the contract, after repairs."""

    facts: DatasetFacts
    events: EventLog
    """By user, time and row."""
    items: Catalog
    findings: tuple[Problem, ...]
    """Repairs and notices."""


def check_folder(folder: Path) -> list[Problem]:
    """Everything that is found in a data folder: errors first, then repairs and notices."""
    return inspect_folder(folder)[0]


def inspect_folder(folder: Path, progress: bool = False) -> tuple[list[Problem], Folder | None]:
    """Problems of a data folder, and the folder after repairs, or None where there are errors."""
    findings = Findings()
    loaded = _read(Path(folder), findings, progress)
    problems = sorted(findings.problems, key=lambda problem: _KINDS.index(problem.kind))
    if loaded is None or findings.has_error:
        return problems, None
    return problems, Folder(*loaded, findings=tuple(problems))


def load_folder(folder: Path, progress: bool = False) -> Folder:
    """Read a data folder. Repairs and notices are logged. Raises InvalidData listing every error."""
    problems, loaded = inspect_folder(folder, progress)
    raise_errors(str(folder), problems)
    assert loaded is not None, "a folder without errors has been read"
    _report(loaded.facts.name, problems)
    return loaded


def load_events(folder: Path, progress: bool = False) -> EventLog:
    """The very events of `load_folder`, read without the items (so `listed` is None). Raises InvalidData."""
    findings = Findings()
    read = _read_events(Path(folder), findings, progress)
    raise_errors(str(folder), findings.problems)
    assert read is not None, "a folder without errors has been read"
    facts, events = read
    repair_events(events, findings)
    _report(facts.name, findings.problems)
    return events


def _read(folder: Path, findings: Findings, progress: bool) -> tuple[DatasetFacts, EventLog, Catalog] | None:
    items = read_items(folder, findings, progress) if folder.is_dir() else None
    read = _read_events(folder, findings, progress)
    if read is None or items is None or findings.has_error:
        return None
    facts, events = read
    _check_against_items(events, items, findings)
    if findings.has_error:
        return None
    repair_events(events, findings)
    return facts, events, items


def _read_events(folder: Path, findings: Findings, progress: bool) -> tuple[DatasetFacts, EventLog] | None:
    """The events in file order, held to all rules that need no items; None if they cannot be read at all."""
    if not folder.is_dir():
        findings.file(str(folder), "is not a folder")
        return None
    facts = read_facts(folder, findings)
    events = read_events(folder, findings, progress)
    if events is None:
        return None
    _check_actions(events, facts, findings)
    if not facts.search_surfaces and set(events.surface_names) == {UNKNOWN_SURFACE}:
        findings.file(EVENTS, "is unknown in every row; a request must name one", "surface")
    return facts, events


def _report(name: str, problems: Iterable[Problem]) -> None:
    for problem in problems:
        log.warning("%s: %s", name, problem)


def read_facts(folder: Path, findings: Findings) -> DatasetFacts:
    """What dataset.json says; its defaults where it is absent or, with a finding, wrong."""
    path = folder / FACTS
    defaults = DatasetFacts(name=folder.resolve().name)
    if not path.exists():
        return defaults
    try:
        text = path.read_text()
    except (OSError, ValueError):
        text = ""
    return facts_from_json(text, defaults, findings)


def facts_from_json(text: str, defaults: DatasetFacts, findings: Findings) -> DatasetFacts:
    """What the text of a dataset.json says; `defaults` where it is silent or, with a finding, wrong."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict):
        findings.file(FACTS, "is not a JSON object")
        return defaults
    known = list(vars(defaults))
    read: dict[str, Any] = {"name": defaults.name}
    for key, value in values.items():
        if key not in known:
            findings.file(FACTS, f"has an unknown key {key!r}; allowed: {', '.join(known)}")
        elif key == "name" and isinstance(value, str):
            read[key] = value
        elif key != "name" and isinstance(value, list) and all(isinstance(v, str) for v in value):
            read[key] = tuple(value)
        else:
            findings.file(FACTS, f"key {key!r} must be {'a string' if key == 'name' else 'a list of strings'}")
    return DatasetFacts(**read)


def _check_actions(events: EventLog, facts: DatasetFacts, findings: Findings) -> None:
    """Hold actions to the declared ones, and declared outcomes to what occurs."""
    if facts.actions:
        allowed = {*facts.actions, SEARCH_ACTION}
        unknown = np.array([name not in allowed for name in events.action_names] + [False])
        what = f"is unknown; {FACTS} allows: {', '.join(facts.actions)}"
        findings.rows((EVENTS, "action"), what, unknown[events.actions], events.show)
    for outcome in facts.outcomes:
        if outcome == SEARCH_ACTION:
            findings.file(FACTS, f"outcomes must not hold {SEARCH_ACTION!r}")
        elif outcome not in events.action_names:
            findings.file(
                FACTS, f"outcome {outcome!r} never occurs; actions in the log: {', '.join(events.action_names)}"
            )


def _check_against_items(events: EventLog, items: Catalog, findings: Findings) -> None:
    """Hold events to items.parquet and note which items it lists. One id must not have two types."""
    at = np.minimum(np.searchsorted(items.ids, events.item_ids), len(items.ids) - 1)
    listed = items.ids[at] == events.item_ids
    differs = listed & (items.types[at] != events.item_types)
    findings.rows((EVENTS, "item_type"), f"differs from the item's in {ITEMS}", differs, events.show)
    is_pin = events.item_types == ItemType.PIN
    findings.rows(
        (EVENTS, "item_id"), f"is a pin that {ITEMS} lacks", is_pin & ~listed, events.show,
        notice="in histories as context without content; never a target or candidate",
    )  # fmt: skip
    if not (is_pin & listed).any():
        findings.file(EVENTS, f"has no event of a pin that {ITEMS} lists")
    events.listed = listed
