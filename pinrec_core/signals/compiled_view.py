"""One version of the batch view as memory-mapped arrays: compiled once from its Parquet, a batch of rows at a time.

    compiled.json   format, digest of the version's manifest, names of actions and surfaces, sha256 and size of arrays
    user_ids.npy    int64 [U] sorted            starts.npy, ends.npy  int64 [U]: where the rows of a user lie
    item_ids.npy    int64 [E]                   item_types.npy  uint8 [E]
    actions.npy     int32 [E]                   surfaces.npy    int32 [E]      places in the names
    timestamps_ms.npy  int64 [E]                event_ids.npy   uint64 [E]
    text_ids.npy    int64 [Q] sorted            text_offsets.npy int64 [Q + 1]  text_bytes.npy uint8: search queries

Letters: E rows, U users, Q search queries. Only users, texts and one batch of rows are ever in memory.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.event_log.parquet import UNREADABLE, NameCodes
from pinrec_core.release import sha256_of
from pinrec_core.schema import ITEM_TYPE_NAMES
from pinrec_core.signals.merge import HistoryRows
from pinrec_core.signals.view_folder import MANIFEST, ViewManifest, verify_files, versions

FACTS = "compiled.json"
FORMAT = 1
ROW_COLUMNS = ("user_id", "timestamp_ms", "event_id", "item_id", "item_type", "action", "surface", "text")
"""Columns of a version's Parquet that the arrays are made of; event_id is an int64 with the bits of the uint64."""
_ROWS_PER_BATCH = 131_072
_ROW_DTYPES = {
    "item_ids": np.int64,
    "item_types": np.uint8,
    "actions": np.int32,
    "surfaces": np.int32,
    "timestamps_ms": np.int64,
    "event_ids": np.uint64,
}
assert tuple(_ROW_DTYPES) == HistoryRows._fields, "a history is these columns"


@dataclass(frozen=True)
class ViewArrays:
    """Every array of a compiled view; each rests in the `.npy` file of its name."""

    user_ids: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    item_types: NDArray[np.uint8]
    actions: NDArray[np.int32]
    surfaces: NDArray[np.int32]
    timestamps_ms: NDArray[np.int64]
    event_ids: NDArray[np.uint64]
    text_ids: NDArray[np.int64]
    text_offsets: NDArray[np.int64]
    text_bytes: NDArray[np.uint8]

    @classmethod
    def empty(cls) -> ViewArrays:
        """No user, no row, no text."""
        sizes, dtypes = {"text_offsets": 1}, {**_ROW_DTYPES, "text_bytes": np.uint8}
        return cls(**{name: np.zeros(sizes.get(name, 0), dtypes.get(name, np.int64)) for name in ARRAY_NAMES})


ARRAY_NAMES = tuple(one.name for one in fields(ViewArrays))


@dataclass(frozen=True)
class CompiledView:
    """The arrays of a version and the names that its codes mean."""

    arrays: ViewArrays
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]


def compiled_view(dest: Path, manifest: ViewManifest, cache: Path) -> CompiledView:
    """Map the arrays of a version from `cache`, compiled first where they are missing, damaged or of another view.

    Arrays of versions that `dest` no longer has are removed. Raises InvalidData if the version's Parquet is damaged or
    vanishes meanwhile, or the arrays cannot be written.
    """
    folder = cache / str(manifest.version)
    try:
        digest = sha256_of(dest / str(manifest.version) / MANIFEST)
        facts = _checked_facts(folder, digest)
        if facts is None:
            _compile(dest, manifest, digest, folder)
            facts = json.loads((folder / FACTS).read_text())
            _remove_others(cache, versions(dest))
        arrays = ViewArrays(**{name: _mapped(folder / f"{name}.npy") for name in ARRAY_NAMES})
    except UNREADABLE as error:
        where = f"batch view {dest.name!r}, version {manifest.version}"
        raise InvalidData(f"{where} cannot be compiled: {str(error).splitlines()[0]}") from error
    return CompiledView(arrays, tuple(facts["actions"]), tuple(facts["surfaces"]))


def _checked_facts(folder: Path, digest: str) -> dict[str, Any] | None:
    """What compiled.json says, if its arrays are whole and made of the manifest with this digest; else None."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        whole = (facts["format"], facts["view"]) == (FORMAT, digest) and all(
            (folder / name).stat().st_size == size and sha256_of(folder / name) == sha256
            for name, (size, sha256) in ((f"{array}.npy", facts["files"][f"{array}.npy"]) for array in ARRAY_NAMES)
        )
        return facts if whole and {"actions", "surfaces"} <= set(facts) else None
    except (OSError, ValueError, KeyError, TypeError):  # damaged in whatever way
        return None


def _compile(dest: Path, manifest: ViewManifest, digest: str, folder: Path) -> None:
    parts = verify_files(dest, manifest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with closing(_Compiler(staging, manifest.num_events)) as compiler:
            for path in parts:
                file = pq.ParquetFile(path)
                missing = [name for name in ROW_COLUMNS if name not in file.schema_arrow.names]
                if missing:
                    raise InvalidData(f"batch view: file {path.name} lacks the column {missing[0]}")
                for batch in file.iter_batches(_ROWS_PER_BATCH, columns=list(ROW_COLUMNS)):
                    compiler.add(batch)
            names = compiler.finish()
        arrays = [staging / f"{name}.npy" for name in ARRAY_NAMES]
        files = {path.name: (path.stat().st_size, sha256_of(path)) for path in arrays}
        facts = {"format": FORMAT, "view": digest, **names, "files": files}
        (staging / FACTS).write_text(json.dumps(facts, indent=1))
        staging.chmod(0o755)
        if folder.exists():  # of another view, damaged, or another process's that was as quick
            shutil.rmtree(folder)
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


class _Compiler:
    """Writes batches of rows one after the other, remembering where each user's begin."""

    def __init__(self, folder: Path, num_events: int) -> None:
        self._folder, self._num_events = folder, num_events
        self._files = {name: (folder / f"{name}.npy").open("wb") for name in _ROW_DTYPES}
        for name, dtype in _ROW_DTYPES.items():
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (num_events,)}
            np.lib.format.write_array_header_1_0(self._files[name], header)
        self._types, self._actions, self._surfaces = NameCodes(ITEM_TYPE_NAMES), NameCodes(), NameCodes()
        self._users: list[NDArray[np.int64]] = []
        self._starts: list[NDArray[np.int64]] = []
        self._texts: dict[int, str] = {}
        self._last: tuple[int, int, int] | None = None
        self._at = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Raises InvalidData if the rows are not by user, time and event id, or more than the manifest says."""
        if not len(batch):
            return
        users, times = batch.column("user_id").to_numpy(), batch.column("timestamp_ms").to_numpy()
        event_ids = batch.column("event_id").to_numpy().view(np.uint64)
        self._check_order(users, times, event_ids)
        values = {
            "item_ids": batch.column("item_id").to_numpy(),
            "item_types": self._types.encode(batch.column("item_type")),
            "actions": self._actions.encode(batch.column("action")),
            "surfaces": self._surfaces.encode(batch.column("surface")),
            "timestamps_ms": times,
            "event_ids": event_ids,
        }
        for name, column in values.items():
            self._files[name].write(column.astype(_ROW_DTYPES[name]).tobytes())
        first = np.flatnonzero(np.diff(users, prepend=users[0]) != 0)
        if self._last is None or users[0] != self._last[0]:
            first = np.append(0, first)
        self._users.append(users[first])
        self._starts.append(self._at + first)
        self._add_texts(batch)
        self._last = int(users[-1]), int(times[-1]), int(event_ids[-1])
        self._at += len(batch)

    def finish(self) -> dict[str, list[str]]:
        """Write what remains; the names of actions and surfaces by code."""
        self.close()
        if self._at != self._num_events:
            raise InvalidData(f"batch view: {self._at} rows; manifest: {self._num_events}")
        users, starts = np.concatenate(self._users), np.concatenate(self._starts)
        ends = np.append(starts[1:], self._num_events)
        order = np.argsort(users, kind="stable")
        if (np.diff(users[order]) == 0).any():
            raise InvalidData("batch view: rows of a user lie in two places")
        text_ids = np.array(sorted(self._texts), dtype=np.int64)
        texts = [self._texts[item_id].encode() for item_id in text_ids.tolist()]
        arrays = {
            "user_ids": users[order],
            "starts": starts[order],
            "ends": ends[order],
            "text_ids": text_ids,
            "text_offsets": np.cumsum([0, *map(len, texts)]).astype(np.int64),
            "text_bytes": np.frombuffer(b"".join(texts), dtype=np.uint8),
        }
        for name, values in arrays.items():
            np.save(self._folder / f"{name}.npy", values, allow_pickle=False)
        return {"actions": self._actions.names, "surfaces": self._surfaces.names}

    def close(self) -> None:
        """Close the files, whole or not."""
        for file in self._files.values():
            file.close()

    def _check_order(self, users: NDArray[np.int64], times: NDArray[np.int64], ids: NDArray[np.uint64]) -> None:
        if self._last is not None:
            users, times, ids = (
                np.append(np.array([last], column.dtype), column)
                for last, column in zip(self._last, (users, times, ids), strict=True)
            )
        ordered = (times[1:] > times[:-1]) | ((times[1:] == times[:-1]) & (ids[1:] > ids[:-1]))
        if not (ordered | (users[1:] != users[:-1])).all():
            raise InvalidData("batch view: rows of a user are not by time and event id")

    def _add_texts(self, batch: pa.RecordBatch) -> None:
        """Of the spellings of one search query the first in the alphabet is kept, whatever the order of rows."""
        rows = pa.table({"id": batch.column("item_id"), "text": batch.column("text")})
        rows = rows.filter(rows["text"].is_valid())
        smallest = rows.group_by("id").aggregate([("text", "min")])
        for item_id, text in zip(smallest["id"].to_pylist(), smallest["text_min"].to_pylist(), strict=True):
            self._texts[item_id] = min(text, self._texts.get(item_id, text))


def _mapped(path: Path) -> NDArray[Any]:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:  # an array without elements cannot be mapped, nor a file that is no array
        if path.stat().st_size > 1_024:
            raise InvalidData(f"batch view: file {path.name} cannot be opened") from error
        mapped = np.load(path, allow_pickle=False)
    return np.asarray(mapped)  # the same pages without memmap's slow slicing


def _remove_others(cache: Path, kept: list[int]) -> None:
    """Processes that still map a removed array go on reading it."""
    for path in cache.iterdir():
        if path.name.isdigit() and int(path.name) not in kept:
            shutil.rmtree(path, ignore_errors=True)
