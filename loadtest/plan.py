"""A load profile: what is asked, how often, and which figures fail the run. `profiles/*.toml` are such files."""

from __future__ import annotations

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


def read_plan(path: Path) -> Plan:
    """Read a profile. Raises InvalidConfig naming the key, its value and what is allowed."""
    plan = build(Plan, read_toml(path, "profile"))
    for section, name, value in _numbers(plan):
        if value < 0:
            raise InvalidConfig(f"{section}.{name} has value {value!r}; allowed: 0 or more")
    if not 0 <= plan.traffic.new_users <= 1:
        raise InvalidConfig(f"traffic.new_users has value {plan.traffic.new_users}; allowed: 0 to 1")
    if plan.arrivals.burst_s >= plan.arrivals.burst_every_s:
        raise InvalidConfig(f"arrivals.burst_s has value {plan.arrivals.burst_s}; allowed: less than burst_every_s")
    return plan


def _numbers(plan: Plan) -> list[tuple[str, str, float]]:
    """Section, key and value of each number."""
    return [
        (section, name, value)
        for section, values in asdict(plan).items()
        for name, value in values.items()
        if isinstance(value, int | float)
    ]
