"""What runs have found, small enough to be committed, so that a bench goes on where it stopped, here or elsewhere.

<results>/users/<digest>.npz       who was measured and on what: shared by all readings of the same users
<results>/<key>/run.json           what the run is, the commit and the machine that made it, what it measured
<results>/<key>/<reading>.npz      which targets one reading found; run.json says which reading it is
<work>/runs/<key>/                 a training run of the project, or the peer's exchange folder; not for committing

Which targets are found (a bit each) and how many of a user's items are distinct is all that a reading adds to its
users: a few kilobytes. The other results follow from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.matrix import Reading, Run
from pinrec_core.eval.results import UserResults

_RUN, _USERS = "run.json", "users"
_OF_READING = ("unique_within", "num_retrieved", "num_distinct")
_FOLLOWS = ("target_hit", "any_hit", "target_share")
"""From the bits of `target_hit`."""
_SHOWN = ("users", "unordered_recall", "target_recall", "unique_within_user")
"""Of a reading's summary, for who reads run.json."""


class RunStore:
    """All runs of a bench. Every file is written beside its place and renamed into it."""

    def __init__(self, results: Path, work: Path) -> None:
        self._results, self._work = results, work

    def model_folder(self, run: Run) -> Path:
        """Where a run's model lies, if it was made on this machine."""
        return self._work / "runs" / run.key

    def open(self, run: Run, made_by: Mapping[str, Any]) -> Path:
        """The run's model folder; the first time it is noted what the run is and who made it."""
        if not self._path(run, _RUN).exists():
            self._path(run, _RUN).parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path(run, _RUN), {"run": asdict(run), "made_by": dict(made_by), "measured": {}})
        folder = self.model_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def has(self, run: Run, reading: Reading) -> bool:
        """Whether a reading is there."""
        return self._path(run, f"{reading.key}.npz").exists()

    def save(self, run: Run, reading: Reading, results: UserResults, beside: Mapping[str, float]) -> None:
        """Keep a reading; `beside`: measurements that are no per-user results, such as the compression ratio."""
        of_users = {
            one.name: np.asarray(getattr(results, one.name))
            for one in fields(results)
            if one.name not in (*_OF_READING, *_FOLLOWS)
        }
        digest = _digest(of_users)
        if not self._users(digest).exists():
            self._users(digest).parent.mkdir(parents=True, exist_ok=True)
            _write_npz(self._users(digest), of_users)
        of_reading = {name: np.asarray(getattr(results, name)) for name in _OF_READING}
        hits = {"users": np.array(digest), "target_hit": np.packbits(results.target_hit)}
        _write_npz(self._path(run, f"{reading.key}.npz"), {**of_reading, **hits})
        shown = {name: value for name, value in results.summary().items() if name in _SHOWN}
        self.note(run, {f"reading {reading.key}": {**asdict(reading), **shown, **beside}})

    def load(self, run: Run, reading: Reading) -> UserResults:
        """Inverse of `save`. Raises OSError if the reading or its users are not there."""
        with np.load(self._path(run, f"{reading.key}.npz"), allow_pickle=False) as stored:
            values: dict[str, Any] = {name: stored[name] for name in _OF_READING}
            digest, bits = str(stored["users"]), stored["target_hit"]
        with np.load(self._users(digest), allow_pickle=False) as stored:
            values |= {name: stored[name] for name in stored.files}
        for name in ("surfaces", "outcomes"):
            values[name] = tuple(str(word) for word in values[name])
        for name in ("num_retrieved", "num_distinct", "corpus_size"):
            values[name] = int(values[name])
        hit = np.unpackbits(bits, count=len(values["target_user"])).astype(np.bool_)
        found = np.bincount(values["target_user"][hit], minlength=len(values["user_ids"])).astype(np.float32)
        share = found / np.maximum(1, values["num_targets"]).astype(np.float32)
        return UserResults(**values, target_hit=hit, any_hit=(found > 0).astype(np.float32), target_share=share)

    def note(self, run: Run, values: Mapping[str, Any]) -> None:
        """Add to what the run measured."""
        stored = json.loads(self._path(run, _RUN).read_text())
        write_json(self._path(run, _RUN), {**stored, "measured": {**stored["measured"], **values}})

    def notes(self, run: Run) -> dict[str, Any]:
        """Everything noted of a run, empty before the first."""
        return self._stored(run, "measured")

    def made_by(self, run: Run) -> dict[str, Any]:
        """Commit and machine of a run, empty if it is not there."""
        return self._stored(run, "made_by")

    def _stored(self, run: Run, part: str) -> dict[str, Any]:
        path = self._path(run, _RUN)
        return dict(json.loads(path.read_text())[part]) if path.exists() else {}

    def _path(self, run: Run, name: str) -> Path:
        return self._results / run.key / name

    def _users(self, digest: str) -> Path:
        return self._results / _USERS / f"{digest}.npz"


def write_json(path: Path, values: Any) -> None:
    """Write beside `path` and rename."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(values, indent=1, default=str) + "\n")
    os.replace(partial, path)


def _write_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))
    os.replace(partial, path)


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]
