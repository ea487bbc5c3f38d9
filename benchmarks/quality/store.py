"""Results on disk, one folder a run, so that a bench that was stopped goes on where it stopped.

runs/<key>/config.json            what the run is, with the commit and the machine that made it
runs/<key>/model/                 a training run of the project, or the peer's exchange folder
runs/<key>/<reading>.npz          per-user results of one reading; `<reading>.json` says which
runs/<key>/metrics.json           what training measured, and a summary of each reading
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.matrix import Reading, Run
from pinrec_core.eval.results import UserResults

_CONFIG, _METRICS = "config.json", "metrics.json"


class RunStore:
    """All runs under one folder. Every file is written beside its place and renamed into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def folder_of(self, run: Run) -> Path:
        """Where a run lies."""
        return self._folder / run.key

    def open(self, run: Run, made_by: Mapping[str, Any]) -> Path:
        """The run's folder; the first time it is noted what the run is and who made it."""
        folder = self.folder_of(run)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _CONFIG).exists():
            write_json(folder / _CONFIG, {"run": asdict(run), "made_by": dict(made_by)})
        return folder

    def has(self, run: Run, reading: Reading) -> bool:
        """Whether a reading is there."""
        return (self.folder_of(run) / f"{reading.key}.npz").exists()

    def save(self, run: Run, reading: Reading, results: UserResults, beside: Mapping[str, float]) -> None:
        """Keep a reading; `beside`: measurements that are no per-user results, such as the compression ratio."""
        folder = self.folder_of(run)
        self.note(run, {f"reading {reading.key}": {**asdict(reading), **results.summary(), **beside}})
        partial = folder / f".{reading.key}.npz"
        results.save(partial)
        os.replace(partial, folder / f"{reading.key}.npz")

    def load(self, run: Run, reading: Reading) -> UserResults:
        """Inverse of `save`. Raises OSError if the reading is not there."""
        return UserResults.load(self.folder_of(run) / f"{reading.key}.npz")

    def note(self, run: Run, values: Mapping[str, Any]) -> None:
        """Add to the run's metrics."""
        write_json(self.folder_of(run) / _METRICS, {**self.notes(run), **values})

    def notes(self, run: Run) -> dict[str, Any]:
        """Everything noted of a run, empty before the first."""
        path = self.folder_of(run) / _METRICS
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def made_by(self, run: Run) -> dict[str, Any]:
        """Commit and machine of a run, empty if it is not there."""
        path = self.folder_of(run) / _CONFIG
        return dict(json.loads(path.read_text())["made_by"]) if path.exists() else {}


def write_json(path: Path, values: Any) -> None:
    """Write beside `path` and rename."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(values, indent=1, default=str))
    os.replace(partial, path)
