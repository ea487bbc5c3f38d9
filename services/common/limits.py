"""How much one client may ask: a rate with a burst, and a number of requests a day."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from pinrec_core.errors import InvalidConfig, LimitExceeded

_DAY_S = 86_400


@dataclass(frozen=True)
class Limits:
    """Of one client, in one process; 0 = no limit. A request is one user's answer, one message of a stream, one call.

    `burst` requests may come at once (0 = those of one second), `requests_per_second` of them are given back a second.
    A day is one of UTC.
    """

    requests_per_second: float = 0.0
    burst: int = 0
    requests_per_day: int = 0

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            whole = key != "requests_per_second"
            right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not (right and math.isfinite(value) and value >= 0):
                kind = "a whole number" if whole else "a number"
                raise InvalidConfig(f"{key} has value {value!r}; allowed: {kind}, 0 (no limit) or more")
        if self.burst and not self.requests_per_second:
            raise InvalidConfig(f"burst has value {self.burst}; allowed: 0 without requests_per_second")

    @property
    def room(self) -> float:
        """Requests that may come at once."""
        return float(self.burst) or max(1.0, self.requests_per_second)


NO_LIMITS = Limits()


class Allowance:
    """What one client has left. For one event loop; not thread-safe.

    A request is admitted while at least one is left, and may then cost more than one (a batch): what it overdraws is
    paid back before the next is admitted. So no batch is too large for a burst, and the rate holds over time.
    """

    def __init__(
        self,
        limits: Limits,
        monotonic_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._unix_s = unix_s
        self._limits = limits
        self._left = limits.room
        self._counted_at_s = monotonic_s()
        self._day = 0
        self._today = 0

    def set_limits(self, limits: Limits) -> None:
        """Other limits from now on; what was used today stays used."""
        if limits != self._limits:
            self._refill()
            self._left = min(self._left, limits.room) if self._limits.requests_per_second else limits.room
            self._limits = limits

    def take(self) -> None:
        """One request. Raises LimitExceeded, which says when the next may come."""
        wait_s = self.wait_s()
        if wait_s > 0:
            raise LimitExceeded(f"{self._limits.requests_per_second:g} requests per second", wait_s)
        self.charge(1)

    def charge(self, requests: int) -> None:
        """What an admitted request costs."""
        if self._limits.requests_per_second:
            self._left -= requests
        self._today += requests

    def wait_s(self) -> float:
        """Seconds until the rate admits the next request, 0 = now. Raises LimitExceeded once the day's are used up."""
        self._check_day()
        if not self._limits.requests_per_second:
            return 0.0
        self._refill()
        return max(0.0, (1.0 - self._left) / self._limits.requests_per_second)

    def _refill(self) -> None:
        now_s = self._monotonic_s()
        gained = (now_s - self._counted_at_s) * self._limits.requests_per_second
        self._left = min(self._limits.room, self._left + gained)
        self._counted_at_s = now_s

    def _check_day(self) -> None:
        now_s = self._unix_s()
        day = int(now_s // _DAY_S)
        if day != self._day:
            self._day, self._today = day, 0
        most = self._limits.requests_per_day
        if most and self._today >= most:
            raise LimitExceeded(f"{most} requests a day", (day + 1) * _DAY_S - now_s)
