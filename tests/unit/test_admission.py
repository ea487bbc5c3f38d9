"""Who gets a place: limits, priorities, deadlines and what the refused are told, on a clock that the test turns."""

import asyncio
import math
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.config import config_from_dict
from pinrec_core.errors import DeadlineExceeded, Overloaded, Unavailable
from pinrec_core.release import Release
from services.common.metrics import GatewayMetrics
from services.gateway.admission import BATCH, INTERACTIVE, Admission
from services.gateway.calls import FAILURES_IN_A_ROW, Breaker, RetryBudget
from services.gateway.group import Group
from services.gateway.in_flight import InFlight


class World:
    def __init__(self):
        self.now_s = 50.0
        self.registry = CollectorRegistry()
        self.metrics = GatewayMetrics(self.registry)
        self.admission = Admission(InFlight(self.metrics.in_flight, Group.alone()), self.metrics, lambda: self.now_s)

    def place(self, places=4, priority=INTERACTIVE, deadline=math.inf):
        release = Release(Path("releases/1"), 1, {}, config_from_dict({"serve": {"max_in_flight": places}}), None)
        return self.admission.place(release, priority, deadline)

    def answer(self, seconds, **place):
        with self.place(**place):
            self.now_s += seconds

    def shed(self, reason, priority="INTERACTIVE"):
        labels = {"reason": reason, "priority": priority}
        return self.registry.get_sample_value("pinrec_gateway_shed_total", labels) or 0.0


@pytest.fixture
def world():
    return World()


def test_every_place_is_given_and_the_next_is_refused(world):
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(world.place())
        with pytest.raises(Overloaded, match="all 4 places are taken; try again later"), world.place():
            pass
        assert (world.shed("places"), world.registry.get_sample_value("pinrec_gateway_in_flight")) == (1, 4)
    with world.place():
        pass


def test_who_finds_no_place_is_turned_away_unread(world):
    release = Release(Path("releases/1"), 1, {}, config_from_dict({"serve": {"max_in_flight": 2}}), None)
    world.answer(0.050)
    with world.place(places=2):
        assert world.admission.turn_away(release) is None
        with world.place(places=2):
            first, second = world.admission.turn_away(release), world.admission.turn_away(release)
            assert first.message == "all 2 places are taken; try again later"
            assert first.retry_after_s == pytest.approx(0.05 * 4 / 3)
            assert second is first, "what is told is not made up anew for each"
            world.now_s += 0.02
            assert world.admission.turn_away(release).retry_after_s == pytest.approx(0.05 * 6 / 3)
            assert world.shed("places") == 3
            world.now_s += 0.6  # nothing comes back: not an overload, so popular lists may answer
            assert world.admission.turn_away(release) is None
    assert world.admission.turn_away(release) is None


def test_batch_requests_leave_half_of_the_places(world):
    with ExitStack() as held:
        for _ in range(2):
            held.enter_context(world.place(priority=BATCH))
        with pytest.raises(Overloaded, match="all 2 places are taken"), world.place(priority=BATCH):
            pass
        for _ in range(2):
            held.enter_context(world.place())
    assert (world.shed("places", "BATCH"), world.shed("places")) == (1, 0)
    with world.place(priority=BATCH, places=1):  # an idle gateway works for anybody
        pass


async def test_parts_of_a_batch_wait_for_room_until_their_time_is_up(world):
    release = Release(Path("releases/1"), 1, {}, config_from_dict({"serve": {"max_in_flight": 2}}), None)
    with world.place(places=2):
        waiting = asyncio.create_task(world.admission.room_for_batch(release, until=60.0))
        await asyncio.sleep(0.02)
        assert not waiting.done()
    await waiting
    with world.place(places=2):
        waiting = asyncio.create_task(world.admission.room_for_batch(release, until=60.0))
        world.now_s = 60.0
        await waiting


def test_a_deadline_that_leaves_too_little_is_refused_at_once(world):
    world.answer(0.050)
    with world.place():
        with pytest.raises(Overloaded, match="less than the 50 ms that an answer takes"), world.place(deadline=50.09):
            pass
        with world.place(deadline=50.11):
            pass
    assert world.shed("deadline") == 1
    with world.place(deadline=50.051):  # alone: only an answer tells whether it still takes so long
        pass


def test_the_refused_are_told_how_long_until_there_is_room_for_all(world):
    """One of ten is let in, an answer takes 50 ms: ten callers who come every 500 ms ask for one at a time."""
    world.answer(0.050)
    with world.place(places=1):
        for _ in range(17):
            with pytest.raises(Overloaded), world.place(places=1):
                pass
        with pytest.raises(Overloaded) as refused, world.place(places=1):
            pass
    assert refused.value.retry_after_s == pytest.approx(0.050 * 20 / 2)


def test_places_from_which_nothing_comes_back_are_not_overload(world):
    with ExitStack() as held:
        for _ in range(4):
            held.enter_context(world.place())
        world.now_s += 0.4
        with pytest.raises(Overloaded), world.place():
            pass
        world.now_s += 0.2
        assert world.admission.is_stalled
        with pytest.raises(Unavailable, match="the serving stages do not answer"), world.place():
            pass
    world.answer(0.01)
    assert not world.admission.is_stalled


def test_an_idle_hour_is_no_stall(world):
    world.answer(0.01)
    world.now_s += 3600
    with world.place():
        assert not world.admission.is_stalled


def test_a_place_is_given_back_whatever_happens(world):
    for error in (DeadlineExceeded("late"), asyncio.CancelledError()):
        with pytest.raises(type(error)), world.place(places=1):
            raise error
    with world.place(places=1):
        pass


def test_the_breaker_opens_after_failures_in_a_row_and_only_a_canary_closes_it(world):
    breaker = Breaker(world.metrics)
    breaker.close()
    for _ in range(3):
        for _ in range(FAILURES_IN_A_ROW - 1):
            breaker.failed()
        breaker.answered()
    breaker.check()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed()
    breaker.answered()
    with pytest.raises(Unavailable):
        breaker.check()
    assert world.registry.get_sample_value("pinrec_gateway_ready") == 0
    breaker.close()
    breaker.check()
    assert world.registry.get_sample_value("pinrec_gateway_ready") == 1


def test_ten_answers_pay_for_a_retry_and_ten_retries_can_be_saved(world):
    budget = RetryBudget()
    assert [budget.spend() for _ in range(11)] == [True] * 10 + [False]
    for _ in range(10):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
