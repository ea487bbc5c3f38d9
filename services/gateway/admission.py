"""Who gets a place in the ensemble, and who is refused at once: nothing waits in the gateway but parts of a batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias

from pinrec_core.errors import Overloaded, Unavailable
from pinrec_core.release import Release
from services.common.metrics import GatewayMetrics
from services.gateway.in_flight import InFlight
from services.gateway.latency_limit import LatencyLimit
from services.proto.candidates_pb2 import GetCandidatesRequest

if TYPE_CHECKING:
    Priority: TypeAlias = GetCandidatesRequest.Priority.ValueType

INTERACTIVE = GetCandidatesRequest.INTERACTIVE
BATCH = GetCandidatesRequest.BATCH

BATCH_SHARE = 0.5
"""Of the places that there are in overload: a batch request is let in only while fewer are taken."""

STALLED_S = 0.5
STALLED_LATENCIES = 10
"""Nothing answered for so long, and for so many times what an answer takes: that is not overload."""

RETRY_S = (0.01, 5.0)
"""Bounds of what a refused client is told to wait."""

LOOP_PASSES = 2
"""Times that a request in the ensemble waits for the gateway's event loop: to be sent, and when its answer is there.

Fewer places would not shorten that: where the gateway is short of a core, its callers are refused no earlier.
"""

SAME_REFUSAL_S = 0.01
"""So long whoever is turned away is told the same, which costs a part of making it up anew."""

_LOOK_S = 0.005


class Admission:
    """Places in the ensemble. For one event loop; `now` is in seconds, `lag_s` is how late the loop is.

    Each process of a gateway has places of its own, since the kernel decides which of them a connection reaches: its
    share of `serve.max_in_flight` at most. But whether a request is alone, and how long one takes that is, is a matter
    of them all: a process that took the others' requests for the ensemble's own slowness would let in ever more.
    """

    def __init__(
        self,
        in_flight: InFlight,
        metrics: GatewayMetrics,
        now: Callable[[], float] = time.monotonic,
        lag_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._in_flight = in_flight
        self._metrics = metrics
        self._now = now
        self._lag_s = lag_s
        self._group = in_flight.group
        self._limit = LatencyLimit(now, self._group)
        self._progress_at = now()
        self._pressure = Pressure(now)
        self._turned_away: Overloaded | None = None
        self._turned_away_until = now()

    @contextmanager
    def place(self, release: Release, priority: Priority, deadline: float) -> Iterator[None]:
        """One place while inside; `deadline` in seconds of `now`.

        Raises Overloaded if there is none, or too little time for an answer; Unavailable if all are taken and nothing
        comes back.
        """
        self._check(release, priority, deadline)
        start, alone, answered = self._now(), not self._group.in_flight, False
        if not self._in_flight.total:
            self._progress_at = start
        self._pressure.admitted += 1
        try:
            with self._in_flight.one(release.number):
                yield
            answered = True
            self._progress_at = self._now()
        finally:
            at_once = self._group.in_flight + 1
            own_s = LOOP_PASSES * self._lag_s()
            self._limit.observe(self._now() - start, answered, alone and at_once == 1, at_once, own_s)
            self._metrics.places.set(self.places(release, INTERACTIVE))

    def places(self, release: Release, priority: Priority) -> int:
        """Requests at once, of this process, up to which one of this priority is let in."""
        ceiling = self._ceiling(release)
        if priority == INTERACTIVE:
            return self._limit.places(ceiling)
        return max(1, int(BATCH_SHARE * self._limit.steady(ceiling)))  # a batch makes no bursts: it can wait

    async def room_for_batch(self, release: Release, until: float) -> None:
        """Wait until a batch request would be let in, or `until`."""
        while self._in_flight.total >= self.places(release, BATCH) and self._now() < until:
            await asyncio.sleep(_LOOK_S)

    @property
    def is_stalled(self) -> bool:
        """Whether none of those in the ensemble has come back for long."""
        patience_s = max(STALLED_S, STALLED_LATENCIES * self._limit.latency_s)
        return self._now() - self._progress_at > patience_s

    def turn_away(self, release: Release) -> Overloaded | None:
        """The refusal of a request that nobody has read yet, if not even an interactive one has a place.

        An overload is mostly refusals: they must cost as little as can be. It counts as INTERACTIVE.
        """
        total, places = self._in_flight.total, self.places(release, INTERACTIVE)
        if total < places or self.is_stalled:
            return None
        self._limit.arrived(total, self._ceiling(release))
        self._count_refused("places", INTERACTIVE)
        if self._now() >= self._turned_away_until:
            self._turned_away = self._overloaded(f"all {places} places are taken")
            self._turned_away_until = self._now() + SAME_REFUSAL_S
        return self._turned_away

    def _ceiling(self, release: Release) -> int:
        return self._group.share(release.config.serve.max_in_flight)

    def _check(self, release: Release, priority: Priority, deadline: float) -> None:
        total = self._in_flight.total
        self._limit.arrived(total, self._ceiling(release))
        places = self.places(release, priority)
        if total >= places:
            if self.is_stalled:
                raise Unavailable("the serving stages do not answer")
            self._count_refused("places", priority)
            raise self._overloaded(f"all {places} places are taken")
        # A lone request is always tried: what it takes may have changed, and only an answer tells.
        expected_s = self._limit.latency_s
        if total and deadline - self._now() < expected_s:
            self._count_refused("deadline", priority)
            words = f"the deadline leaves less than the {1000 * expected_s:.0f} ms that an answer takes at present"
            raise self._overloaded(words)

    def _count_refused(self, reason: str, priority: Priority) -> None:
        self._pressure.refused += 1
        self._metrics.shed.labels(reason, GetCandidatesRequest.Priority.Name(priority)).inc()
        if reason == "places" and priority == INTERACTIVE:  # a batch has fewer places than the limit gives
            self._limit.refused()

    def _overloaded(self, words: str) -> Overloaded:
        wait_s = min(max(self._limit.latency_s * self._pressure.asked_of_admitted, RETRY_S[0]), RETRY_S[1])
        return Overloaded(f"{words}; try again later", wait_s)


class Pressure:
    """How many requests come for each that is admitted, over the last second or two."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = now()
        self._before = 1.0
        self.admitted = self.refused = 0

    @property
    def asked_of_admitted(self) -> float:
        """1 = all are admitted. If who is refused waits for so many latencies, no more come than can be admitted."""
        ratio = (self.admitted + self.refused) / max(1, self.admitted)
        if self._now() - self._since > 1.0:
            self._since, self._before, self.admitted, self.refused = self._now(), ratio, 0, 0
            return ratio
        return max(self._before, ratio) if self.admitted else self._before
