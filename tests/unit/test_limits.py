"""Rates, bursts and daily quotas of one client, on a clock of the test's own."""

import pytest

from pinrec_core.errors import InvalidConfig, LimitExceeded
from services.common.limits import Allowance, Limits

DAY_S = 86_400.0


class Clock:
    """Seconds, on both clocks; midnight UTC at 0."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def allowance(clock, **limits):
    return Allowance(Limits(**limits), clock, clock)


def admitted(one, tries):
    """How many of `tries` requests at one moment are let in."""
    count = 0
    for _ in range(tries):
        try:
            one.take()
            count += 1
        except LimitExceeded:
            pass
    return count


def test_without_limits_all_are_admitted(clock):
    assert admitted(allowance(clock), 10_000) == 10_000


def test_a_burst_then_the_rate(clock):
    one = allowance(clock, requests_per_second=8.0, burst=3)
    assert admitted(one, 5) == 3
    clock.now_s = 0.3125  # 2.5 given back
    assert admitted(one, 5) == 2
    clock.now_s = 0.375  # half of one was left, and half of one has come
    assert admitted(one, 5) == 1
    clock.now_s = 100.0  # never more than the burst
    assert admitted(one, 5) == 3


@pytest.mark.parametrize(("per_second", "at_once"), [(4.0, 4), (0.5, 1)])
def test_a_burst_that_is_not_given_is_that_of_one_second(clock, per_second, at_once):
    assert admitted(allowance(clock, requests_per_second=per_second), 10) == at_once


def test_the_error_says_what_the_limit_is_and_when_to_try_again(clock):
    one = allowance(clock, requests_per_second=4.0, burst=1)
    one.take()
    clock.now_s = 0.05  # 0.2 given back; 0.8 at 4 a second take 0.2 s
    said = r"the limit of this client is 4 requests per second; try again in 0\.2 s"
    with pytest.raises(LimitExceeded, match=said) as refused:
        one.take()
    assert refused.value.retry_after_s == pytest.approx(0.2)


def test_a_batch_larger_than_the_burst_is_admitted_once_and_paid_back(clock):
    one = allowance(clock, requests_per_second=10.0, burst=2)
    one.take()
    one.charge(31)  # 32 users: 2 - 32 = -30
    clock.now_s = 3.0  # back at 0
    assert admitted(one, 1) == 0
    clock.now_s = 3.1
    assert admitted(one, 2) == 1


def test_a_day_is_one_of_utc(clock):
    one = allowance(clock, requests_per_day=3)
    clock.now_s = DAY_S - 100
    assert admitted(one, 5) == 3
    with pytest.raises(LimitExceeded, match="3 requests a day; try again in 100 s"):
        one.take()
    with pytest.raises(LimitExceeded, match="3 requests a day"):
        one.wait_s()
    clock.now_s = DAY_S
    assert admitted(one, 5) == 3


def test_refused_requests_do_not_count_against_the_day(clock):
    one = allowance(clock, requests_per_second=1.0, burst=1, requests_per_day=2)
    assert admitted(one, 50) == 1
    clock.now_s = 1.0
    assert admitted(one, 50) == 1
    clock.now_s = 2.0
    assert admitted(one, 50) == 0


def test_other_limits_hold_at_once_and_what_was_used_stays_used(clock):
    one = allowance(clock, requests_per_second=10.0, burst=10, requests_per_day=12)
    assert admitted(one, 8) == 8
    one.set_limits(Limits(requests_per_second=10.0, burst=5, requests_per_day=12))
    assert admitted(one, 5) == 2
    one.set_limits(Limits(requests_per_day=12))
    assert admitted(one, 5) == 2
    one.set_limits(Limits(requests_per_second=1.0, burst=3))
    assert admitted(one, 5) == 3


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"requests_per_second": -1.0}, "requests_per_second has value -1.0; allowed: a number, 0"),
        ({"requests_per_second": float("nan")}, "requests_per_second has value nan"),
        ({"requests_per_second": "5"}, "requests_per_second has value '5'"),
        ({"requests_per_second": 1.0, "burst": 1.5}, "burst has value 1.5; allowed: a whole number"),
        ({"burst": 5}, "burst has value 5; allowed: 0 without requests_per_second"),
        ({"requests_per_day": True}, "requests_per_day has value True"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, said):
    with pytest.raises(InvalidConfig, match=said):
        Limits(**limits)
