"""Places that follow latency, on a clock that the test turns: what a window does, worked by hand."""

import pytest

from services.gateway.latency_limit import START, LatencyLimit

LONE_S = 0.010


class Ensemble:
    """Answers one request after another, `LONE_S` each: n at once take n times as long."""

    def __init__(self):
        self.now_s = 100.0
        self.limit = LatencyLimit(lambda: self.now_s)

    def alone(self, times=10, elapsed_s=LONE_S):
        for _ in range(times):
            self.now_s += elapsed_s
            self.limit.observe(elapsed_s, answered=True, alone=True, at_once=1)

    def overload(self, at_once=64, seconds=2.0, ceiling=64):
        """A hundred requests a second that each find `at_once` others."""
        for _ in range(round(100 * seconds)):
            self.now_s += 0.01
            self.limit.arrived(at_once, ceiling)

    def window(self, service_s=LONE_S, refused=10, answered=True):
        """A tenth of a second and at least eight requests with every place taken; for each of them some `refused`."""
        end, at_once = self.now_s + 0.1, self.limit.places(64)
        for number in range(10_000):
            if number >= 8 and self.now_s >= end:
                return
            self.now_s += service_s
            for _ in range(refused):
                self.limit.arrived(at_once, 64)
                self.limit.refused()
            self.limit.observe(at_once * service_s, answered, alone=at_once == 1, at_once=at_once)


@pytest.fixture
def ensemble():
    return Ensemble()


@pytest.fixture
def overloaded(ensemble):
    """One that knows what a lone request takes."""
    ensemble.alone()
    ensemble.overload()
    return ensemble


def test_nothing_is_known_at_first_and_the_ceiling_always_holds(ensemble):
    assert (ensemble.limit.places(64), ensemble.limit.steady(64)) == (64, START)
    assert (ensemble.limit.places(4), ensemble.limit.steady(4)) == (4, 4)
    assert (ensemble.limit.latency_s, ensemble.limit.lone_s) == (0.0, 0.0)


def test_a_lone_request_is_the_measure(ensemble):
    ensemble.alone(31)
    ensemble.alone(1, elapsed_s=9.0)  # one hiccup moves no median
    assert ensemble.limit.lone_s == pytest.approx(LONE_S)
    assert ensemble.limit.steady(64) == START, "lone requests say nothing about the limit"


def test_too_many_at_once_are_an_overload_if_it_lasts(ensemble):
    """Half of the requests, which fade with e^(-t / 2 s): after 2 ln 2 = 1.386 s."""
    ensemble.overload(at_once=32, seconds=1.38)  # twice the limit
    assert (ensemble.limit.is_overloaded, ensemble.limit.places(64)) == (False, 64)
    ensemble.overload(at_once=32, seconds=0.01)
    assert (ensemble.limit.is_overloaded, ensemble.limit.places(64)) == (True, START)


def test_an_overload_is_over_once_few_find_every_place_taken(ensemble):
    """After 1.39 s of it 1 - e^(-1.39 / 0.7) = .863 of those lately, and a fifth after 0.7 ln(.863 / .2) = 1.023 s."""
    ensemble.overload(at_once=32, seconds=1.39)
    ensemble.overload(at_once=15, seconds=1.01)
    assert ensemble.limit.is_overloaded
    ensemble.overload(at_once=15, seconds=0.02)
    assert ensemble.limit.places(64) == 64


def test_a_stall_or_a_burst_is_none(ensemble):
    for _ in range(20):
        ensemble.overload(at_once=60, seconds=0.3)
        ensemble.overload(at_once=5, seconds=0.7)
        assert not ensemble.limit.is_overloaded
    ensemble.overload(at_once=5, seconds=6.0)
    ensemble.overload(at_once=60, seconds=1.2)  # a long stall, and the work that it left behind
    assert not ensemble.limit.is_overloaded
    ensemble.now_s += 9.0  # nobody comes, and the first who does finds nobody
    ensemble.overload(at_once=0, seconds=0.01)
    ensemble.overload(at_once=60, seconds=1.2)
    assert not ensemble.limit.is_overloaded


def test_with_few_places_all_of_them_taken_is_too_many(ensemble):
    ensemble.overload(at_once=4, ceiling=4)
    assert ensemble.limit.is_overloaded


def test_in_overload_two_lone_latencies_and_a_bit_are_aimed_at(overloaded):
    """One server, requests that wait for each other: two or three at once."""
    overloaded.window()
    assert overloaded.limit.places(64) == int(START * 0.7), "no window lowers it by more"
    for _ in range(30):
        overloaded.window()
    assert overloaded.limit.places(64) in (2, 3)


def test_windows_that_refuse_nobody_or_are_no_overload_change_nothing(ensemble):
    ensemble.alone()
    ensemble.window(refused=1)
    assert (ensemble.limit.is_overloaded, ensemble.limit.steady(64)) == (False, START)
    ensemble.overload()
    for _ in range(10):
        ensemble.window(refused=0)
    ensemble.alone(100)
    assert ensemble.limit.steady(64) == START


def test_places_grow_while_somebody_is_refused_and_answers_are_quick(overloaded):
    for _ in range(400):
        overloaded.now_s += 0.0125  # eight make a window
        overloaded.limit.arrived(64, 64)
        overloaded.limit.refused()
        overloaded.limit.observe(0.5 * LONE_S, answered=True, alone=False, at_once=16)
    assert overloaded.limit.places(64) == 64
    assert overloaded.limit.places(1_000) == 64, "the ceiling is where it goes on from"


def test_a_slower_ensemble_becomes_the_new_measure(overloaded):
    """Down to one place, each request is alone, and what a lone request takes is learned again."""
    for _ in range(300):
        overloaded.window(service_s=20 * LONE_S)
    assert overloaded.limit.lone_s == pytest.approx(20 * LONE_S)
    assert overloaded.limit.places(64) in (2, 3)


def test_requests_that_got_no_answer_count_only_if_they_waited_too_long(overloaded):
    for _ in range(50):  # callers in a hurry: they gave up before an answer was due
        overloaded.now_s += 0.02
        overloaded.limit.arrived(64, 64)
        overloaded.limit.refused()
        overloaded.limit.observe(2.0 * LONE_S, answered=False, alone=False, at_once=4)
    assert overloaded.limit.places(64) == START
    for _ in range(100):
        overloaded.now_s += 0.02
        overloaded.limit.arrived(64, 64)
        overloaded.limit.refused()
        overloaded.limit.observe(30 * LONE_S, answered=False, alone=False, at_once=16)
    assert overloaded.limit.places(64) == 1
    assert overloaded.limit.latency_s == pytest.approx(LONE_S), "what an answer takes is told by answers"


def test_time_that_a_request_waited_for_the_gateway_is_not_the_ensembles(overloaded):
    for _ in range(200):
        overloaded.now_s += 0.0125
        overloaded.limit.arrived(64, 64)
        overloaded.limit.refused()
        overloaded.limit.observe(11 * LONE_S, answered=True, alone=False, at_once=16, own_s=10 * LONE_S)
    assert overloaded.limit.places(64) == 64
