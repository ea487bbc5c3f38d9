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

    def window(self, service_s=LONE_S, refused=10, answered=True):
        """A tenth of a second and at least eight requests with every place taken; for each of them some `refused`."""
        end, at_once = self.now_s + 0.1, self.limit.places(64)
        for number in range(10_000):
            if number >= 8 and self.now_s >= end:
                return
            self.now_s += service_s
            for _ in range(refused):
                self.limit.refused()
            self.limit.observe(at_once * service_s, answered, alone=at_once == 1, at_once=at_once)


@pytest.fixture
def ensemble():
    return Ensemble()


def test_nothing_is_known_at_first_and_the_ceiling_always_holds(ensemble):
    assert ensemble.limit.places(64) == START
    assert ensemble.limit.places(4) == 4
    assert (ensemble.limit.latency_s, ensemble.limit.lone_s) == (0.0, 0.0)


def test_a_lone_request_is_the_measure(ensemble):
    ensemble.alone(31)
    ensemble.alone(1, elapsed_s=9.0)  # one hiccup moves no median
    assert ensemble.limit.lone_s == pytest.approx(LONE_S)
    assert ensemble.limit.places(64) == START, "lone requests say nothing about the limit"


def test_in_overload_three_lone_latencies_are_aimed_at(ensemble):
    """One server, requests that wait for each other: three at once."""
    ensemble.alone()
    ensemble.window()
    assert ensemble.limit.places(64) == int(START * 0.7), "no window lowers it by more"
    for _ in range(30):
        ensemble.window()
    assert ensemble.limit.places(64) in (2, 3)


def test_while_few_are_refused_bursts_may_wait_twice_as_long(ensemble):
    ensemble.alone()
    for number in range(100):
        ensemble.window(refused=1 if number % 50 == 0 else 0)
        ensemble.window(refused=0)
    assert ensemble.limit.places(64) > 3


def test_windows_that_refuse_nobody_change_nothing(ensemble):
    ensemble.alone()
    for _ in range(10):
        ensemble.window(refused=0)
    ensemble.alone(100)
    assert ensemble.limit.places(64) == START


def test_places_grow_while_somebody_is_refused_and_answers_are_quick(ensemble):
    ensemble.alone()
    for _ in range(400):
        ensemble.now_s += 0.0125  # eight make a window
        ensemble.limit.refused()
        ensemble.limit.observe(0.5 * LONE_S, answered=True, alone=False, at_once=16)
    assert ensemble.limit.places(64) == 64
    assert ensemble.limit.places(1_000) == 64, "the ceiling is where it goes on from"


def test_a_slower_ensemble_becomes_the_new_measure(ensemble):
    """Down to one place, each request is alone, and what a lone request takes is learned again."""
    ensemble.alone()
    for _ in range(300):
        ensemble.window(service_s=20 * LONE_S)
    assert ensemble.limit.lone_s == pytest.approx(20 * LONE_S)
    assert ensemble.limit.places(64) in (2, 3)


def test_requests_that_got_no_answer_count_only_if_they_waited_too_long(ensemble):
    ensemble.alone()
    for _ in range(50):  # callers in a hurry: they gave up before an answer was due
        ensemble.now_s += 0.02
        ensemble.limit.refused()
        ensemble.limit.observe(2.9 * LONE_S, answered=False, alone=False, at_once=4)
    assert ensemble.limit.places(64) == START
    for _ in range(100):
        ensemble.now_s += 0.02
        ensemble.limit.refused()
        ensemble.limit.observe(30 * LONE_S, answered=False, alone=False, at_once=16)
    assert ensemble.limit.places(64) == 1
    assert ensemble.limit.latency_s == pytest.approx(LONE_S), "what an answer takes is told by answers"


def test_time_that_a_request_waited_for_the_gateway_is_not_the_ensembles(ensemble):
    ensemble.alone()
    for _ in range(200):
        ensemble.now_s += 0.0125
        ensemble.limit.refused()
        ensemble.limit.observe(11 * LONE_S, answered=True, alone=False, at_once=16, own_s=10 * LONE_S)
    assert ensemble.limit.places(64) == 64
