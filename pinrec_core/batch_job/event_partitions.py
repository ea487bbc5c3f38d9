"""The landing days of an event log, in a local folder or behind any fsspec URL; their schemas held to the contract."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import FACTS, DatasetFacts, facts_from_json
from pinrec_core.event_log.landing import LANDING_KEY, landing_day
from pinrec_core.event_log.parquet import EVENT_COLUMNS, OPTIONAL_EVENT_COLUMNS, UNREADABLE, check_schema
from pinrec_core.event_log.problems import Findings, raise_errors

_STATE_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "created")


@dataclass(frozen=True)
class EventPartition:
    """The files of one landing day; of a log without days, all files, and the day is ""."""

    day: str
    files: tuple[str, ...]
    """Paths inside the file system, ascending."""
    fingerprint: str
    """Changes when a file is added, removed or written again."""


@dataclass(frozen=True)
class EventFolder:
    """A log: where it lies, and its partitions by landing day."""

    url: str
    filesystem: Any
    """An fsspec file system."""
    root: str
    """Path of `url` inside the file system."""
    facts: DatasetFacts
    partitions: dict[str, EventPartition]

    @classmethod
    def open(cls, log: str | Path) -> EventFolder:
        """List the log at a local path or URL. Raises InvalidData if it holds no events, or days in part of it."""
        url = str(log)
        try:
            filesystem, root = fsspec.url_to_fs(url)
            facts = _facts(filesystem, root, url)
            files = _event_files(filesystem, root)
        except (OSError, ValueError, ImportError) as error:  # a file system's own protocol may need a package
            raise InvalidData(f"{url!r} cannot be listed: {error}") from error
        if not files:
            raise InvalidData(f"{url!r} does not keep the event-log contract:\n  events.parquet: is missing")
        by_day: dict[str, dict[str, str]] = {}
        for path, state in files.items():
            by_day.setdefault(landing_day(path.removeprefix(root)), {})[path] = state
        if "" in by_day and len(by_day) > 1:
            path = next(iter(by_day[""]))
            raise InvalidData(f"{path} lies in no {LANDING_KEY}= folder, but other files of {url!r} do")
        partitions = {
            day: EventPartition(day, tuple(sorted(states)), _fingerprint(root, states))
            for day, states in by_day.items()
        }
        return cls(url, filesystem, root, facts, dict(sorted(partitions.items())))

    @property
    def is_local(self) -> bool:
        """Whether engines read its paths as they are."""
        return "file" in _protocols(self.filesystem)

    @property
    def is_partitioned(self) -> bool:
        """Whether it is a folder `events/` of files, rather than one file."""
        return all(path.startswith(f"{self.root}/events/") for p in self.partitions.values() for path in p.files)

    def url_of(self, path: str) -> str:
        """A path of this log with its protocol."""
        return str(self.filesystem.unstrip_protocol(path))

    def columns(self, partitions: Iterable[EventPartition]) -> set[str]:
        """Names of all columns that files of the partitions have, checked. Raises InvalidData listing every error."""
        findings, names = Findings(), set()
        for path in (path for partition in partitions for path in partition.files):
            inside = path.removeprefix(self.root).lstrip("/")
            try:
                with self.filesystem.open(path, "rb") as file:
                    schema = pq.read_schema(file)
            except UNREADABLE:
                findings.file(inside, "is not a readable Parquet file")
                continue
            check_schema(inside, schema, EVENT_COLUMNS, OPTIONAL_EVENT_COLUMNS, findings)
            names |= {*schema.names, *(part.split("=", 1)[0] for part in inside.split("/") if "=" in part)}
        raise_errors(self.url, findings.problems)
        return names


def _event_files(filesystem: Any, root: str) -> dict[str, str]:
    """Paths of Parquet files and their states. Raises InvalidData where both layouts of a log lie beside each other."""
    single = f"{root}/events.parquet"
    found = filesystem.find(f"{root}/events", detail=True) if filesystem.isdir(f"{root}/events") else {}
    names = {path: path.rsplit("/", 1)[-1] for path in found}
    parts = {
        path: _state(found[path])
        for path, name in names.items()
        if name.endswith(".parquet") and not name.startswith((".", "_"))
    }
    if not filesystem.isfile(single):
        return parts
    if parts:
        raise InvalidData("events.parquet: lies beside a partitioned events/: keep one of the two")
    return {single: _state(filesystem.info(single))}


def _state(info: Mapping[str, Any]) -> str:
    """Changes when a file is written again; file systems name the time or the tag of that differently."""
    return f"{info['size']} {next((info[key] for key in _STATE_KEYS if key in info), '')}"


def _facts(filesystem: Any, root: str, url: str) -> DatasetFacts:
    path = f"{root}/{FACTS}"
    defaults = DatasetFacts(name=root.rstrip("/").rsplit("/", 1)[-1])
    if not filesystem.isfile(path):
        return defaults
    findings = Findings()
    facts = facts_from_json(filesystem.cat_file(path).decode(errors="replace"), defaults, findings)
    raise_errors(url, findings.problems)
    return facts


def _fingerprint(root: str, states: dict[str, str]) -> str:
    lines = [f"{path.removeprefix(root).lstrip('/')} {state}" for path, state in sorted(states.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
