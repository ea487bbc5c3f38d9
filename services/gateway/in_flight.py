"""Requests in the ensemble right now, by release: an old release closes when none of its own are left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge


class InFlight:
    """Counts on one event loop; `gauge` shows the total."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._counts: Counter[int] = Counter()
        self.total = 0
        """Of all releases."""

    def by_release(self) -> dict[int, int]:
        """Of each release that has any."""
        return dict(+self._counts)

    @contextmanager
    def one(self, release: int) -> Iterator[None]:
        """Count a request of `release` while it is there."""
        self._add(release, 1)
        try:
            yield
        finally:
            self._add(release, -1)

    def _add(self, release: int, count: int) -> None:
        self._counts[release] += count
        self.total += count
        self._gauge.set(self.total)
