"""Requests in the ensemble right now, by release: an old release closes when none of its own are left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Gauge

from services.gateway.group import Group


class InFlight:
    """Counts on one event loop; `gauge` shows the total. `group` is told, and tells of the other processes."""

    def __init__(self, gauge: Gauge, group: Group) -> None:
        self._gauge = gauge
        self.group = group
        self.total = 0
        """Of all releases, in this process."""

    def by_release(self) -> dict[int, int]:
        """Of each release that has any, in all processes of this gateway."""
        return self.group.in_flight_by_release()

    @contextmanager
    def one(self, release: int) -> Iterator[None]:
        """Count a request of `release` while it is there."""
        self._add(release, 1)
        try:
            yield
        finally:
            self._add(release, -1)

    def _add(self, release: int, count: int) -> None:
        self.group.count(release, count)
        self.total += count
        self._gauge.set(self.total)
