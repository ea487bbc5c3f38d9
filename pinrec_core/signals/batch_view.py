"""The batch view: the daily event log as one sorted, memory-mapped history a user (paper, section 4.4.1).

    manifest.json   format, watermark_ms, counts, names of actions and surfaces, sha256 and size of every array
    user_ids.npy    int64 [U] sorted           offsets.npy     int64 [U + 1]
    item_ids.npy    int64 [E]                  item_types.npy  uint8 [E]
    actions.npy     int32 [E]                  surfaces.npy    int32 [E]      places in the manifest's names
    timestamps_ms.npy  int64 [E]               event_ids.npy   uint64 [E]
    text_ids.npy    int64 [Q] sorted           text_offsets.npy int64 [Q + 1]  text_bytes.npy uint8: search queries

Rows of user i lie at `offsets[i]:offsets[i + 1]`, oldest first. The log is read, checked and repaired by `event_log`,
so that training and serving see the same events. Letters: E rows kept, U users, Q search queries.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import load_events
from pinrec_core.event_log.events import EventLog
from pinrec_core.release import sha256_of
from pinrec_core.schema import MAX_SEEN_ITEMS, ItemType
from pinrec_core.signals.merge import HistoryRows

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class BatchArrays:
    """Every array of a batch view; each rests in the `.npy` file of its name."""

    user_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]
    text_ids: NDArray[np.int64]
    text_offsets: NDArray[np.int64]
    text_bytes: NDArray[np.uint8]


ARRAY_NAMES = tuple(f.name for f in fields(BatchArrays))


@dataclass(frozen=True)
class BatchView:
    """An opened batch view. Action and surface codes are places in `actions` and `surfaces`."""

    watermark_ms: int
    """Time of the newest event, Unix milliseconds; 0 = no event."""
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    arrays: BatchArrays

    @classmethod
    def empty(cls) -> BatchView:
        """What a system without a daily log starts from."""
        sizes = {"offsets": 1, "text_offsets": 1}
        dtypes = {"item_types": np.uint8, "actions": np.int32, "surfaces": np.int32, "event_ids": np.uint64}
        arrays = {name: np.zeros(sizes.get(name, 0), dtypes.get(name, np.int64)) for name in ARRAY_NAMES}
        return cls(watermark_ms=0, actions=(), surfaces=(), arrays=BatchArrays(**arrays))

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> BatchView:
        """Memory-map what `compile_batch_view` wrote; `verify` holds every file to its sha256. Raises InvalidData."""
        manifest = _manifest(folder)
        if verify:
            _verify(folder, manifest["files"])
        arrays = BatchArrays(**{name: _open_array(folder / f"{name}.npy") for name in ARRAY_NAMES})
        names = manifest["actions"], manifest["surfaces"]
        return cls(int(manifest["watermark_ms"]), tuple(names[0]), tuple(names[1]), arrays)

    @property
    def num_users(self) -> int:
        """Users with at least one event."""
        return len(self.arrays.user_ids)

    def read(self, user_id: int) -> HistoryRows:
        """All rows of a user, oldest first; no rows if unknown."""
        arrays = self.arrays
        row = int(arrays.user_ids.searchsorted(user_id))
        if row == len(arrays.user_ids) or arrays.user_ids[row] != user_id:
            return HistoryRows(*(column[:0] for column in self._columns))
        span = slice(int(arrays.offsets[row]), int(arrays.offsets[row + 1]))
        return HistoryRows(*(column[span] for column in self._columns))

    def search_query(self, item_id: int) -> str:
        """Text of a search query of the log; empty if unknown."""
        arrays = self.arrays
        row = int(arrays.text_ids.searchsorted(item_id))
        if row == len(arrays.text_ids) or arrays.text_ids[row] != item_id:
            return ""
        return arrays.text_bytes[arrays.text_offsets[row] : arrays.text_offsets[row + 1]].tobytes().decode()

    @cached_property
    def _columns(self) -> tuple[NDArray[Any], ...]:
        return tuple(getattr(self.arrays, name) for name in HistoryRows._fields)


def compile_batch_view(data_folder: Path, out: Path, max_events_per_user: int = MAX_SEEN_ITEMS) -> dict[str, int]:
    """Write the batch view of `events.parquet` (or every Parquet file under `events/`) to the folder `out`.

    A user keeps the newest `max_events_per_user` events, oldest first; events of equal time keep the log's order, so
    that times which only give the order (`schema.FIRST_WALL_CLOCK_MS`) sort like any other. Written beside `out` and
    renamed; an older view there is replaced, and processes that hold it open go on reading it. Repairs and notices of
    the log (`event_log/contract.py`) are logged. Returns counts for the caller to print. Raises InvalidData naming file
    and column, or where `out` holds anything but a batch view, which replacing it would delete.
    """
    _check_replaceable(out)
    log = load_events(data_folder)
    num_rows, watermark_ms = len(log) + log.num_repeats, int(log.timestamps_ms.max())
    _keep_newest(log, max_events_per_user)
    user_ids, offsets = log.by_user()
    texts = _search_queries(log)
    arrays = BatchArrays(
        user_ids=user_ids,
        offsets=offsets,
        item_ids=log.item_ids,
        item_types=log.item_types.astype(np.uint8),
        actions=log.actions,
        surfaces=log.surfaces,
        timestamps_ms=log.timestamps_ms,
        event_ids=log.event_ids,
        text_ids=texts.ids,
        text_offsets=texts.offsets,
        text_bytes=texts.utf8,
    )
    facts = {
        "watermark_ms": watermark_ms,
        "num_users": len(user_ids),
        "num_events": len(log),
        "num_dropped": num_rows - len(log),
        "num_search_queries": len(texts.ids),
    }
    _write(out, arrays, {"format": FORMAT, **facts, "actions": log.action_names, "surfaces": log.surface_names})
    return facts


@dataclass(frozen=True)
class _Texts:
    """Search queries by sorted id: text i is `utf8[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    utf8: NDArray[np.uint8]


def _keep_newest(log: EventLog, max_events_per_user: int) -> None:
    """Drop all but the newest rows of each user from a sorted log."""
    _, offsets = log.by_user()
    lengths = np.diff(offsets)
    if lengths.max() > max_events_per_user:
        ends = np.repeat(offsets[1:], lengths)
        log.take(ends - np.arange(len(log)) <= max_events_per_user)


def _search_queries(log: EventLog) -> _Texts:
    """The texts of the log's search queries."""
    kept = np.unique(log.item_ids[log.item_types == ItemType.SEARCH_QUERY])
    texts = [log.query_texts[item_id].encode() for item_id in kept.tolist()]
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return _Texts(kept, offsets, np.frombuffer(b"".join(texts), dtype=np.uint8))


def _write(out: Path, arrays: BatchArrays, facts: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        files = {}
        for name in ARRAY_NAMES:
            file = staging / f"{name}.npy"
            np.save(file, getattr(arrays, name), allow_pickle=False)
            files[file.name] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        (staging / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1, sort_keys=True))
        staging.chmod(0o755)
        _replace_folder(staging, out)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _check_replaceable(out: Path) -> None:
    if not out.exists():
        return
    strangers = sorted({path.name for path in out.iterdir()} - {MANIFEST, *(f"{name}.npy" for name in ARRAY_NAMES)})
    if strangers:
        raise InvalidData(f"{str(out)!r} holds {strangers[0]!r}, so it is no batch view: name another folder")


def _replace_folder(staging: Path, out: Path) -> None:
    """Put `staging` where `out` is. The old folder is moved aside first: a rename does not replace a full one."""
    if not out.exists():
        os.rename(staging, out)
        return
    aside = staging.with_name(f"{staging.name}-old")
    os.rename(out, aside)
    os.rename(staging, out)
    shutil.rmtree(aside)


def _manifest(folder: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise InvalidData(f"batch view {folder.name!r} has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise InvalidData(f"batch view: {MANIFEST} is not readable JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InvalidData(f"batch view: {MANIFEST} must say format {FORMAT}")
    return manifest


def _verify(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    for name in (f"{array}.npy" for array in ARRAY_NAMES):
        if name not in files or not (folder / name).is_file():
            raise InvalidData(f"batch view: file {name} is missing")
        size = (folder / name).stat().st_size
        if size != files[name]["bytes"]:
            raise InvalidData(f"batch view: file {name} has {size} bytes; manifest: {files[name]['bytes']}")
        if sha256_of(folder / name) != files[name]["sha256"]:
            raise InvalidData(f"batch view: file {name} does not match its sha256")


def _open_array(path: Path) -> NDArray[Any]:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidData(f"batch view: file {path.name} cannot be opened: {type(error).__name__}") from error
    return np.asarray(mapped)  # the same pages without memmap's slow slicing
