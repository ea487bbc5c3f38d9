"""What an engine of the batch-view job does: `definition.py` says what, an engine says where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from pinrec_core.batch_job.event_partitions import EventFolder, EventPartition


class Counted(NamedTuple):
    """Rows of one landing day and fate (None = events)."""

    landed: str
    fate: str | None
    num_rows: int
    newest_ms: int | None
    num_known: int
    """Of a known surface."""


class Engine(Protocol):
    """Runs the queries of `definition.py`, in the order of these methods, once each. A context manager."""

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def load(self, log: EventFolder, partitions: Sequence[EventPartition], cleaned: str) -> None:
        """Read the files of `partitions` and clean them by the query `cleaned`, whose source is `LOG`."""

    def counted(self) -> list[Counted]:
        """What was loaded."""

    def write(self, view: str, previous: Sequence[Path], out: Path) -> None:
        """Write `out`/bucket=NNN/*.parquet by the query `view`, whose source `EVENTS` is the events that were loaded
        and the rows of the Parquet files `previous`.
        """


LOG, EVENTS = "log_files", "events_of_view"
"""Names in SQL."""
VIEW_COLUMNS = (
    "bucket", "user_id", "timestamp_ms", "event_id", "item_id", "item_type", "action", "surface", "text", "landed",
)  # fmt: skip
"""Columns of a view's rows; what a previous version gives to the next."""
