"""The queue that the stack's latencies are held against: what servers without any overhead make of the same arrivals.

A pipeline of stages, each a single server that takes all that waits for it, up to a largest batch, as soon as it is
free. How long a batch takes is drawn from what was measured of each stage alone, by the batch's size. Stages at work at
the same time want more cores than there may be; they then share them equally and all become slower.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_QUANTILES = 1_001


class ServiceTimes:
    """How long batches take: measured for some sizes, interpolated between them quantile by quantile.

    measured: batch size -> seconds of several batches. Sizes up to `largest`; beyond the largest measured one, that.
    """

    def __init__(self, measured: Mapping[int, Sequence[float]], largest: int) -> None:
        sizes = sorted(measured)
        quantiles = np.linspace(0.0, 1.0, _QUANTILES)
        known = np.array([np.quantile(measured[size], quantiles) for size in sizes])  # [sizes, quantiles]
        wanted = np.arange(1, largest + 1)
        self._seconds = np.stack([np.interp(wanted, sizes, column) for column in known.T], axis=1)  # [largest, quant.]
        self.largest = largest

    def mean_s(self, size: int) -> float:
        """Of a batch of `size`."""
        return float(self._seconds[size - 1].mean())

    def draw(self, size: int, at: int) -> float:
        """Seconds of a batch of `size` at one of the quantiles, 0 = shortest to `draws - 1` = longest."""
        return float(self._seconds[size - 1, at])

    @property
    def draws(self) -> int:
        """How many quantiles there are to draw from."""
        return _QUANTILES


class _Server:
    """One stage: who waits, who is served, and how much of their time is left at full speed."""

    def __init__(self, times: ServiceTimes, rng: np.random.Generator) -> None:
        self._times = times
        self._rng = rng
        self._draws: list[int] = []
        self.waiting: deque[int] = deque()
        self.batch: list[int] = []
        self.left_s = 0.0

    def start(self) -> None:
        """Take what waits, unless the server is busy or nobody is there."""
        if self.batch or not self.waiting:
            return
        size = min(len(self.waiting), self._times.largest)
        self.batch = [self.waiting.popleft() for _ in range(size)]
        if not self._draws:
            self._draws = self._rng.integers(0, self._times.draws, 4_096).tolist()
        self.left_s = self._times.draw(size, self._draws.pop())


def simulate(
    arrivals_s: NDArray[np.float64],
    stages: Sequence[ServiceTimes],
    cores: float = math.inf,
    threads: int = 1,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Seconds from each arrival (ascending) to the end of the last stage: float64 [n] -> float64 [n].

    A stage at work wants `threads` of the `cores`.
    """
    servers = [_Server(times, np.random.default_rng([seed, place])) for place, times in enumerate(stages)]
    arrivals, latencies = arrivals_s.tolist(), np.zeros(len(arrivals_s))
    now, arrived = 0.0, 0
    while True:
        busy = [place for place, server in enumerate(servers) if server.batch]
        if arrived == len(arrivals) and not busy:
            return latencies
        speed = min(1.0, cores / (threads * len(busy))) if busy else 1.0
        first = min(busy, key=lambda place: servers[place].left_s, default=-1)
        done_at = now + servers[first].left_s / speed if busy else math.inf
        arrival_at = arrivals[arrived] if arrived < len(arrivals) else math.inf
        then = min(done_at, arrival_at)
        for place in busy:
            servers[place].left_s -= (then - now) * speed
        now = then
        if arrival_at <= done_at:
            servers[0].waiting.append(arrived)
            servers[0].start()
            arrived += 1
            continue
        finished, servers[first].batch = servers[first].batch, []
        servers[first].start()
        if first + 1 < len(servers):
            servers[first + 1].waiting.extend(finished)
            servers[first + 1].start()
        else:
            latencies[finished] = now - arrivals_s[finished]
