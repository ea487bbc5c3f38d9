"""The batch view: the last year of the event log as one sorted, memory-mapped history a user (paper, section 4.4.1).

`pinrec_core/batch_job` writes the folder of batch views, `view_folder.py` says how it lies there, `compiled_view.py`
turns a version into arrays, `batch_views.py` follows the versions of a folder. Letters: E rows, U users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidData
from pinrec_core.signals.compiled_view import ViewArrays, compiled_view
from pinrec_core.signals.merge import HistoryRows
from pinrec_core.signals.view_folder import current_version, read_manifest

COMPILED = ".compiled"


@dataclass(frozen=True)
class BatchView:
    """An opened batch view. Action and surface codes are places in `actions` and `surfaces`."""

    version: int
    """0 = the empty view."""
    watermark_ms: int
    """Time of the newest event, Unix milliseconds; 0 = no event."""
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    arrays: ViewArrays

    @classmethod
    def empty(cls) -> BatchView:
        """What a system without a daily log starts from."""
        return cls(0, 0, (), (), ViewArrays.empty())

    @property
    def num_users(self) -> int:
        """Users with at least one event."""
        return len(self.arrays.user_ids)

    @cached_property
    def columns(self) -> HistoryRows:
        """All rows [E], mapped; a user's lie together (`spans`), oldest first, events of equal time by event id."""
        return HistoryRows._make(getattr(self.arrays, name) for name in HistoryRows._fields)

    def spans(self, user_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the rows of users int64 [n] lie in `columns`: starts and ends int64 [n], equal if a user is unknown."""
        arrays = self.arrays
        if not self.num_users:
            return np.zeros(len(user_ids), np.int64), np.zeros(len(user_ids), np.int64)
        rows = np.minimum(arrays.user_ids.searchsorted(user_ids), self.num_users - 1)
        starts = arrays.starts[rows]
        return starts, np.where(arrays.user_ids[rows] == user_ids, arrays.ends[rows], starts)

    def read(self, user_id: int) -> HistoryRows:
        """All rows of a user, oldest first; no rows if unknown."""
        starts, ends = self.spans(np.array([user_id], dtype=np.int64))
        return HistoryRows._make(column[int(starts[0]) : int(ends[0])] for column in self.columns)

    def search_query(self, item_id: int) -> str:
        """Text of a search query of the log; empty if unknown."""
        arrays = self.arrays
        row = int(arrays.text_ids.searchsorted(item_id))
        if row == len(arrays.text_ids) or arrays.text_ids[row] != item_id:
            return ""
        return arrays.text_bytes[arrays.text_offsets[row] : arrays.text_offsets[row + 1]].tobytes().decode()


def open_batch_view(dest: Path, cache: Path | None = None) -> BatchView:
    """The current version of a folder of batch views.

    Its arrays lie in `cache` (default: `.compiled` inside `dest`; name another folder where `dest` is read-only) and
    are compiled the first time. Raises InvalidData saying what is missing or damaged.
    """
    version = current_version(dest)
    if version is None:
        raise InvalidData(f"{dest.name!r} holds no batch view yet: `pinrec data batch-view LOG DEST` makes one")
    manifest = read_manifest(dest, version)
    compiled = compiled_view(dest, manifest, cache or dest / COMPILED)
    return BatchView(version, manifest.watermark_ms, compiled.actions, compiled.surfaces, compiled.arrays)
