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

    @property
    def total(self) -> int:
        """Of all releases."""
        return self._counts.total()

    def by_release(self) -> dict[int, int]:
        """Of each release that has any."""
        return dict(+self._counts)

    @contextmanager
    def one(self, release: int) -> Iterator[None]:
        """Count a request of `release` while it is there."""
        self._counts[release] += 1
        self._gauge.set(self.total)
        try:
            yield
        finally:
            self._counts[release] -= 1
            self._gauge.set(self.total)
