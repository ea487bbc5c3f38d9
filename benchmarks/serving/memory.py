"""Peak memory of the stack's processes."""

from __future__ import annotations

from benchmarks.capacity import pids_of
from benchmarks.chaos.fleet import Fleet
from benchmarks.chaos.parts import pss_mb_of


class Memory:
    """Peak PSS of each process, looked at whenever asked to."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.peaks_mb: dict[str, float] = {}

    def look(self) -> None:
        """Once more."""
        for name, pids in pids_of(self._fleet).items():
            self.peaks_mb[name] = max(self.peaks_mb.get(name, 0.0), sum(map(pss_mb_of, pids)))
