"""The event-log contract: what a data folder must hold, checked and repaired in one place for every reader of it.

A folder holds

- `events.parquet`, or a partitioned `events/`: user_id int64, item_id int64, item_type (pin, search_query), action,
  surface, timestamp_ms int64; optional event_id uint64, text (search_query rows need it), actions list<string>;
- `items.parquet`: item_id int64, item_type; optional embedding list<float>, text, title, url;
- `dataset.json`, optional: name, outcomes (strongest first), search_surfaces, actions (any other action is an error).

A timestamp below `schema.FIRST_WALL_CLOCK_MS` gives the order only; the surface `unknown` is the unknown code.

Errors: a missing file or column, a wrong type, nulls, unknown item types or actions, negative times, times in seconds
or microseconds, an embedding with NaN or of another length, a search query without text, an event id used twice.
Repairs, each counted and reported: exact duplicates dropped, disorder sorted, item ids of search queries hashed from
their text, events of pins that items.parquet lacks dropped, the first of items with one id kept, zero content for
items with neither embedding nor text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.event_log.catalog import ITEMS, Catalog, read_items
from pinrec_core.event_log.events import EVENTS, EventLog, read_events, repair_events
from pinrec_core.event_log.problems import Findings, Problem, raise_errors
from pinrec_core.schema import SEARCH_ACTION, ItemType

FACTS = "dataset.json"
UNKNOWN_SURFACE = "unknown"
"""Surface of events whose surface was not recorded; it has no code of its own."""


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
    items: Catalog
    repairs: tuple[Problem, ...]


def check_folder(folder: Path) -> list[Problem]:
    """Everything that is wrong with a data folder: errors first, then what would be repaired."""
    return inspect_folder(folder)[0]


def inspect_folder(folder: Path, progress: bool = False) -> tuple[list[Problem], Folder | None]:
    """Problems of a data folder, and the folder after repairs, or None where there are errors."""
    findings = Findings()
    loaded = _read(Path(folder), findings, progress)
    problems = sorted(findings.problems, key=lambda problem: not problem.is_error)
    if loaded is None or findings.has_error:
        return problems, None
    return problems, Folder(*loaded, repairs=tuple(problems))


def load_folder(folder: Path, progress: bool = False) -> Folder:
    """Read a data folder. Raises InvalidData with every error that `check_folder` would list."""
    problems, loaded = inspect_folder(folder, progress)
    raise_errors(str(folder), problems)
    assert loaded is not None, "a folder without errors has been read"
    return loaded


def _read(folder: Path, findings: Findings, progress: bool) -> tuple[DatasetFacts, EventLog, Catalog] | None:
    if not folder.is_dir():
        findings.file(str(folder), "is not a folder")
        return None
    facts = read_facts(folder, findings)
    items = read_items(folder, findings, progress)
    events = read_events(folder, findings, progress)
    if events is not None:
        _check_actions(events, facts, findings)
    if events is None or items is None or findings.has_error:
        return None
    unlisted = _check_against_items(events, items, findings)
    if findings.has_error:
        return None
    repair_events(events, unlisted, findings)
    return facts, events, items


def read_facts(folder: Path, findings: Findings) -> DatasetFacts:
    """What dataset.json says; its defaults where it is absent or, with a finding, wrong."""
    path = folder / FACTS
    defaults = DatasetFacts(name=folder.resolve().name)
    if not path.exists():
        return defaults
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
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


def _check_against_items(events: EventLog, items: Catalog, findings: Findings) -> NDArray[np.bool_]:
    """Hold events to items.parquet: bool [E], the pins that it lacks. One id must not have two types."""
    at = np.minimum(np.searchsorted(items.ids, events.item_ids), len(items.ids) - 1)
    listed = items.ids[at] == events.item_ids
    differs = listed & (items.types[at] != events.item_types)
    findings.rows((EVENTS, "item_type"), f"differs from the item's in {ITEMS}", differs, events.show)
    unlisted: NDArray[np.bool_] = ~listed & (events.item_types == ItemType.PIN)
    return unlisted
