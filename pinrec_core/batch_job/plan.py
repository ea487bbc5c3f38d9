"""What a run of the job reads: the landing days that the current version lacks, or the whole log, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pinrec_core.batch_job.event_partitions import EventFolder, EventPartition
from pinrec_core.errors import InvalidData
from pinrec_core.signals.view_folder import ViewManifest, current_version, read_manifest, verify_files


@dataclass(frozen=True)
class Plan:
    """`partitions` are read, on top of the version `previous` (None = from nothing) whose rows lie in `files`."""

    partitions: tuple[EventPartition, ...]
    previous: ViewManifest | None
    files: tuple[Path, ...]
    why: str


def plan(folder: EventFolder, dest: Path, definition: dict[str, Any], full: bool) -> Plan:
    """What is to be read for the next version at `dest`; a version that is damaged is not built upon."""
    everything = tuple(folder.partitions.values())
    if full:
        return Plan(everything, None, (), "all of the log: asked for")
    try:
        version = current_version(dest)
        if version is None:
            return Plan(everything, None, (), "all of the log: there is no version yet")
        current = read_manifest(dest, version)
        why = _why_full(folder, current, definition)
        if why:
            return Plan(everything, None, (), f"all of the log: {why}")
        lacking = tuple(partition for day, partition in folder.partitions.items() if day not in current.partitions)
        if not lacking:
            return Plan((), current, (), "nothing has landed since")
        files = tuple(verify_files(dest, current))
    except InvalidData as error:
        return Plan(everything, None, (), f"all of the log: {error.message}")
    return Plan(lacking, current, files, f"the days that version {version} lacks")


def _why_full(folder: EventFolder, current: ViewManifest, definition: dict[str, Any]) -> str:
    """Why the rows of `current` cannot be built upon; empty if they can. A day that left the log stays in the view."""
    if current.definition != definition:
        return f"version {current.version} has another definition"
    if current.log != folder.url:
        return f"version {current.version} is of the log {current.log!r}"
    for day, partition in folder.partitions.items():
        if day in current.partitions and current.partitions[day]["fingerprint"] != partition.fingerprint:
            return f"day {day} has changed since it was read" if day else "it has changed since it was read"
    if ("" in folder.partitions) != ("" in current.partitions):
        return "it is partitioned by landing day in another way"
    return ""
