"""A load profile: what is asked, how often, and which figures fail the run. `profiles/*.toml` are such files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pinrec_core.errors import InvalidConfig
from pinrec_core.tables import build, read_toml


@dataclass(frozen=True)
class TrafficPlan:
    """What each request is drawn from. Names that are left out are those of the active release."""

    users: str = "1-1000"
    """FIRST-LAST, or a text file with one id a line."""
    new_users: float = 0.1
    """Share of the requests that come from a user whom nobody has seen."""
    surfaces: dict[str, float] = field(default_factory=dict)
    """Surface -> weight; none = those of the release, all alike."""
    budgets: tuple[str, ...] = ()
    """For example "save=0.5,click=0.5"; none = each outcome of the release alone, then all alike."""
    num_candidates: tuple[int, ...] = (100,)
    search_queries: tuple[str, ...] = ()
    """For surfaces that take one."""
    excluded: int = 0
    """Items that every fourth request excludes."""
    deadline_s: float = 1.0


@dataclass(frozen=True)
class ArrivalsPlan:
    """When the open-loop driver sends: Poisson, with bursts."""

    rate: float = 0.0
    """Requests a second; 0 = `share_of_capacity` of what is measured first."""
    share_of_capacity: float = 0.5
    seconds: float = 30.0
    burst_times: float = 1.0
    """The rate during a burst, in multiples of the rate."""
    burst_every_s: float = 10.0
    burst_s: float = 1.0


@dataclass(frozen=True)
class ClosedPlan:
    """The closed loop: locust users who each wait for their answer."""

    users: int = 8
    seconds: float = 15.0


@dataclass(frozen=True)
class LimitsPlan:
    """A figure above its limit fails the run. Milliseconds, and shares of all requests."""

    p50_ms: float = 1_000.0
    p99_ms: float = 1_000.0
    failed: float = 0.0
    """Every status but OK and RESOURCE_EXHAUSTED."""
    refused: float = 0.0
    """RESOURCE_EXHAUSTED."""
    degraded: float = 0.0


@dataclass(frozen=True)
class Plan:
    """A whole profile."""

    traffic: TrafficPlan = field(default_factory=TrafficPlan)
    arrivals: ArrivalsPlan = field(default_factory=ArrivalsPlan)
    closed: ClosedPlan = field(default_factory=ClosedPlan)
    limits: LimitsPlan = field(default_factory=LimitsPlan)


_ABOVE_ZERO = {
    "traffic.deadline_s",
    "arrivals.share_of_capacity",
    "arrivals.seconds",
    "arrivals.burst_every_s",
    "closed.users",
    "closed.seconds",
}
_SHARES = {"traffic.new_users", "limits.failed", "limits.refused", "limits.degraded"}


def read_plan(path: Path) -> Plan:
    """Read a profile. Raises InvalidConfig naming the key, its value and what is allowed."""
    plan = build(Plan, read_toml(path, "profile"))
    for key, value in _numbers(plan):
        _check(key, value)
    if not plan.traffic.num_candidates or min(plan.traffic.num_candidates) < 1:
        value = list(plan.traffic.num_candidates)
        raise InvalidConfig(f"traffic.num_candidates has value {value}; allowed: one number or more, each 1 or more")
    if plan.traffic.surfaces and not any(plan.traffic.surfaces.values()):
        raise InvalidConfig(f"traffic.surfaces has value {plan.traffic.surfaces}; allowed: a weight above 0 for one")
    if plan.arrivals.burst_s >= plan.arrivals.burst_every_s:
        raise InvalidConfig(f"arrivals.burst_s has value {plan.arrivals.burst_s}; allowed: less than burst_every_s")
    return plan


def _check(key: str, value: float) -> None:
    allowed = "0 or more"
    right = math.isfinite(value) and value >= 0
    if key in _ABOVE_ZERO:
        allowed, right = "more than 0", right and value > 0
    if key in _SHARES:
        allowed, right = "0 to 1", right and value <= 1
    if not right:
        raise InvalidConfig(f"{key} has value {value!r}; allowed: {allowed}")


def _numbers(plan: Plan) -> Iterator[tuple[str, float]]:
    """Key and value of each number, weights of surfaces included."""
    for section, values in asdict(plan).items():
        for name, value in values.items():
            several = value if isinstance(value, dict) else {"": value}
            for each, number in several.items():
                if isinstance(number, int | float):
                    yield f"{section}.{name}" + (f".{each}" if each else ""), number
