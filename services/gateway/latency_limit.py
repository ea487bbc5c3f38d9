"""How many requests may be in the ensemble at once: as many as keep its latency near that of an idle one.

Triton queues what it cannot work on yet. More requests at once than it needs to be busy add waiting and no throughput.
So the limit is measured: a window that refused somebody raises it if its requests took less than `TOLERANCE` times what
a lone request takes, and lowers it if they took longer.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

TOLERANCE, PATIENCE = 3.0, 6.0
"""Mean latency that is aimed at, in latencies of a lone request: in overload, and while hardly anybody is refused."""

OVERLOAD = 0.2
"""Share of refused requests from which on `TOLERANCE` counts; below it, the less are refused the more `PATIENCE` does.

A burst is better answered late than refused; of an overload most is refused anyhow.
"""

START = 16.0
"""Places before anything was measured."""

WINDOW_S = 0.1
WINDOW_REQUESTS = 8
"""A window is so long, and longer if it takes so many requests longer to end."""

LOWEST_STEP, HIGHEST_STEP = 0.7, 1.3
"""Factors that one window may change the limit by. The root of what it asks for, since windows are noisy."""

SHARE_WEIGHT = 0.3
"""Of the newest window in the share of refused requests: some half a second."""

LONE_REQUESTS = 32
"""Lone requests that the latency of an idle ensemble is the median of: some minutes or some milliseconds old."""


class LatencyLimit:
    """For one event loop. `now` is in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._limit = START
        self._lone: deque[float] = deque(maxlen=LONE_REQUESTS)
        self._share = 0.0
        self.latency_s = 0.0
        """What a request takes at present; 0 = not known yet."""
        self._since = now()
        self._sum_s, self._count, self._most, self._refused = 0.0, 0, 0, 0

    def places(self, ceiling: int) -> int:
        """Requests that may be in the ensemble at once: 1 to `ceiling`."""
        self._limit = min(self._limit, float(ceiling))
        return max(1, int(self._limit))

    @property
    def lone_s(self) -> float:
        """What a lone request takes; 0 = not known yet."""
        return median(self._lone) if self._lone else 0.0

    def refused(self) -> None:
        """A request was refused, since every place was taken."""
        self._refused += 1

    def observe(self, elapsed_s: float, answered: bool, alone: bool, at_once: int, own_s: float = 0.0) -> None:
        """A request has ended that was `alone` in the ensemble, or one of `at_once`.

        `own_s` of its time it waited for this process, which is no fault of the ensemble.
        One that got no answer says something about latency only if it waited longer than an answer should take.
        """
        if answered:
            self.latency_s += 0.1 * (elapsed_s - self.latency_s) if self.latency_s else elapsed_s
        elapsed_s = max(0.0, elapsed_s - own_s)
        if answered and alone:
            self._lone.append(elapsed_s)
        if not answered and elapsed_s <= TOLERANCE * self.lone_s:
            return
        self._sum_s += elapsed_s
        self._count += 1
        self._most = max(self._most, at_once)
        if self._count >= WINDOW_REQUESTS and self._now() - self._since >= WINDOW_S:
            self._adapt()
            self._begin()

    def _begin(self) -> None:
        self._since = self._now()
        self._sum_s, self._count, self._most, self._refused = 0.0, 0, 0, 0

    def _adapt(self) -> None:
        """By a window that refused somebody; in any other it is not the limit that makes the latency."""
        self._share += SHARE_WEIGHT * (self._refused / (self._refused + self._count) - self._share)
        if not self._refused or not self.lone_s:
            return
        share = min(1.0, self._share / OVERLOAD)
        tolerance = share * TOLERANCE + (1.0 - share) * PATIENCE
        step = math.sqrt(tolerance * self.lone_s / (self._sum_s / self._count))
        if self._most < 2:  # a lone request waits for no other
            step = HIGHEST_STEP
        self._limit = max(1.0, self._limit * min(max(step, LOWEST_STEP), HIGHEST_STEP))
