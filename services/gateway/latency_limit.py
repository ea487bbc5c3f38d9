"""How many requests may be in the ensemble at once: as many as keep its latency near that of an idle one.

Triton queues what it cannot work on yet. More requests at once than it needs to be busy add waiting and no throughput.
So the limit is measured: a window whose requests took longer than `TOLERANCE` times what a lone request takes lowers
it; one that was quicker, and in which every place was taken, raises it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

TOLERANCE = 2.0
"""Mean latency that is aimed at, in latencies of a lone request."""

START = 16.0
"""Places before anything was measured."""

WINDOW_S = 0.1
WINDOW_REQUESTS = 8
LONGEST_WINDOW_S = 1.0
"""A window ends after `WINDOW_S` with `WINDOW_REQUESTS`. One that has fewer after `LONGEST_WINDOW_S` says nothing."""

LOWEST_STEP, HIGHEST_STEP = 0.7, 1.3
"""Factors that one window may change the limit by. The root of what it asks for, since windows are noisy."""

LONE_REQUESTS = 32
"""Lone requests that the latency of an idle ensemble is the median of: some minutes or some milliseconds old."""


class LatencyLimit:
    """For one event loop. `now` is in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._limit = START
        self._lone: deque[float] = deque(maxlen=LONE_REQUESTS)
        self.latency_s = 0.0
        """What a request takes at present; 0 = not known yet."""
        self._since = now()
        self._sum_s, self._count, self._most, self._was_full = 0.0, 0, 0, False

    def places(self, ceiling: int) -> int:
        """Requests that may be in the ensemble at once: 1 to `ceiling`."""
        self._limit = min(self._limit, float(ceiling))
        return max(1, int(self._limit))

    @property
    def lone_s(self) -> float:
        """What a lone request takes; 0 = not known yet."""
        return median(self._lone) if self._lone else 0.0

    def full(self) -> None:
        """Every place was taken: the limit is what keeps requests out."""
        self._was_full = True

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
        age_s = self._now() - self._since
        if self._count >= WINDOW_REQUESTS and age_s >= WINDOW_S:
            self._adapt()
        if age_s >= LONGEST_WINDOW_S or (self._count >= WINDOW_REQUESTS and age_s >= WINDOW_S):
            self._begin()

    def _begin(self) -> None:
        self._since = self._now()
        self._sum_s, self._count, self._most, self._was_full = 0.0, 0, 0, False

    def _adapt(self) -> None:
        lone_s = self.lone_s
        if not lone_s or self._most < 2:  # a lone request waits for no other
            self._limit *= HIGHEST_STEP if self._was_full else 1.0
            return
        wanted = TOLERANCE * lone_s / (self._sum_s / self._count)
        step = min(max(math.sqrt(wanted), LOWEST_STEP), HIGHEST_STEP)
        if step < 1.0:
            self._limit = max(1.0, min(self._limit, float(self._most)) * step)
        elif self._was_full:
            self._limit *= step
