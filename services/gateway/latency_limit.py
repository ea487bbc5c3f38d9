"""How many requests may be in the ensemble at once: as many as keep its latency near that of an idle one.

Triton queues what it cannot work on yet. More requests at once than it needs to be busy add waiting and no throughput.
So the limit is measured: a window that refused somebody raises it if its requests took less than `TOLERANCE` times what
a lone request takes, and lowers it if they took longer.

It holds only in overload. A burst, or a stall of some tenths of a second, is better answered late than refused; what
tells it from an overload is that it is over soon (as in the controlled delay of a queue: Nichols and Jacobson, ACM
Queue 10(5), 2012).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from statistics import median

from services.gateway.group import Group

TOLERANCE, PATIENCE = 2.3, 8.0
"""Mean latency that is aimed at in overload, in latencies of a lone request: where nearly all find no place, and where
hardly anybody does. The first keeps the p99 within three times a lone request's. The second has larger batches, which
make a request cheaper: a load that few places could not carry goes through, later, and nobody is refused."""

FLOODED = 0.5
"""Share of the requests of late that found no place from which on `TOLERANCE` alone counts."""

BURST = 2.0
"""More requests at once than so many times the limit are too many, if it lasts."""

OVERLOAD, RELIEF = 0.5, 0.2
"""Share of the requests that found too many: from the first on it is an overload, until below the second."""

LASTING_S, LATELY_S = 2.0, 0.7
"""Memory of that share, to begin with and to end with. An overload must have lasted for more than a second, which a
stall and the work that it left behind have not; it is over as soon as a second shows it."""

START = 16.0
"""Places before anything was measured."""

WINDOW_S = 0.1
WINDOW_REQUESTS = 8
"""A window is so long, and longer if it takes so many requests longer to end."""

LOWEST_STEP, HIGHEST_STEP = 0.7, 1.3
"""Factors that one window may change the limit by. The root of what it asks for, since windows are noisy."""

RECENT_REQUESTS = 9
"""Answers that the present latency is the median of: the first one of a new process may take a second."""

LONE_REQUESTS = 32
"""Lone requests that the latency of an idle ensemble is the median of: some minutes or some milliseconds old."""


class LatencyLimit:
    """For one event loop. `now` is in seconds.

    `group`: the processes in front of the same ensemble, each with a limit of its own. They begin with a share, are in
    overload together (else one with few callers would take the room that the others make), and measure together what a
    lone request takes.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, group: Group | None = None) -> None:
        self._now = now
        self._group = group or Group.alone()
        self._start = max(1.0, START / self._group.size)
        self._limit = self._start
        self._lone: deque[float] = deque(maxlen=LONE_REQUESTS)
        self.is_overloaded = False
        self._lasting, self._lately, self._arrived_at = 0.0, 0.0, now()
        self._recent: deque[float] = deque(maxlen=RECENT_REQUESTS)
        self._since = now()
        self._sum_s, self._count, self._most, self._refused = 0.0, 0, 0, 0

    def places(self, ceiling: int) -> int:
        """Requests that may be in the ensemble at once now: 1 to `ceiling`."""
        return self.steady(ceiling) if self.holds else ceiling

    @property
    def holds(self) -> bool:
        """Whether it is an overload, here or in another process."""
        return self.is_overloaded or self._group.worst_of_others(self._now()) > 0

    def steady(self, ceiling: int) -> int:
        """Requests at once that keep latency near that of an idle ensemble, overload or not: 1 to `ceiling`."""
        self._limit = min(self._limit, float(ceiling))
        return max(1, int(self._limit))

    def arrived(self, at_once: int, ceiling: int) -> None:
        """A request came while `at_once` were in the ensemble."""
        limit = self.steady(ceiling)
        bound = limit if self.holds else min(BURST * limit, ceiling)
        now = self._now()
        self._lasting = self._remembered(self._lasting, at_once >= bound, (now - self._arrived_at) / LASTING_S)
        self._lately = self._remembered(self._lately, at_once >= bound, (now - self._arrived_at) / LATELY_S)
        self._arrived_at = now
        if not self.is_overloaded:
            self.is_overloaded = self._lasting >= OVERLOAD
        elif self._lately < RELIEF:
            self.is_overloaded, self._lasting = False, self._lately
            self._limit = max(self._limit, self._start)  # what a flood has left is too little to tell bursts by
        # No longer than that if none arrives: callers may go elsewhere.
        self._group.overloaded(self._lately if self.is_overloaded else 0.0, now + LASTING_S)

    @staticmethod
    def _remembered(share: float, too_many: bool, memories: float) -> float:
        """The share with one more request, so many memories after the one before."""
        kept = math.exp(-memories)
        return kept * share + (1.0 - kept) * too_many

    @property
    def latency_s(self) -> float:
        """What a request takes at present; 0 = not known yet."""
        return median(self._recent) if self._recent else 0.0

    @property
    def lone_s(self) -> float:
        """What a lone request takes; 0 = not known yet."""
        return median(self._lone) if self._lone else self._group.lone_s

    def refused(self) -> None:
        """A request was refused, since every place was taken."""
        self._refused += 1

    def observe(self, elapsed_s: float, answered: bool, alone: bool, at_once: int, own_s: float = 0.0) -> None:
        """A request has ended that was `alone` in the ensemble, or one of `at_once`, those of other processes included.

        `own_s` of its time it waited for this process, which is no fault of the ensemble.
        One that got no answer says something about latency only if it waited longer than an answer should take.
        """
        if answered:
            self._recent.append(elapsed_s)
        elapsed_s = max(0.0, elapsed_s - own_s)
        if answered and alone:
            self._lone.append(elapsed_s)
            self._group.measured(self.lone_s)
        if not answered and elapsed_s <= TOLERANCE * self.lone_s:
            return
        self._sum_s += elapsed_s
        self._count += 1
        self._most = max(self._most, at_once)
        if self._count >= WINDOW_REQUESTS and self._now() - self._since >= WINDOW_S:
            self._adapt()
            self._begin()

    def _tolerance(self) -> float:
        """From `PATIENCE` at `RELIEF` down to `TOLERANCE` at `FLOODED`, by the process where it is worst."""
        lately = max(self._lately, self._group.worst_of_others(self._now()))
        flooded = min(1.0, max(0.0, (lately - RELIEF) / (FLOODED - RELIEF)))
        return flooded * TOLERANCE + (1.0 - flooded) * PATIENCE

    def _begin(self) -> None:
        self._since = self._now()
        self._sum_s, self._count, self._most, self._refused = 0.0, 0, 0, 0

    def _adapt(self) -> None:
        """By a window of overload that refused somebody; in any other it is not the limit that makes the latency."""
        if not (self.holds and self._refused and self.lone_s):
            return
        step = math.sqrt(self._tolerance() * self.lone_s / (self._sum_s / self._count))
        if self._most < 2:  # a lone request waits for no other
            step = HIGHEST_STEP
        self._limit = max(1.0, self._limit * min(max(step, LOWEST_STEP), HIGHEST_STEP))
