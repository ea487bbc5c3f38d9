"""What the processes of one gateway know of each other, and that a switch of releases waits for all of them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.config import config_from_dict
from pinrec_core.errors import Overloaded
from pinrec_core.release import Release, ServingState, write_serving_state
from services.common.metrics import GatewayMetrics
from services.common.server import ServerOptions
from services.gateway.admission import INTERACTIVE, Admission
from services.gateway.group import PAIRS, Group, Table
from services.gateway.in_flight import InFlight
from services.gateway.latency_limit import START, LatencyLimit
from services.gateway.server import Gateway
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.releases_pb2 import GetReleaseStatusRequest
from services.proto.releases_pb2_grpc import ReleaseServiceStub
from tests.gateway_peer import ask, running, write_release


@pytest.fixture
def table(tmp_path):
    return Table.make(tmp_path / "table", 3)


@pytest.fixture
def groups(table, tmp_path):
    """Three processes that have mapped the same file each for itself."""
    return [Group(Table.open(tmp_path / "table"), place) for place in range(table.size)]


def test_parts_of_a_limit_add_up_and_everybody_has_one(groups):
    assert [group.share(64) for group in groups] == [22, 21, 21]
    assert [group.share(2) for group in groups] == [1, 1, 1]
    assert Group.alone().share(64) == 64


def test_requests_are_counted_over_all_processes_and_by_release(groups):
    first, second, third = groups
    for group, release in ((first, 1), (first, 1), (second, 1), (second, 2), (third, 2)):
        group.count(release, 1)
    assert {group.in_flight for group in groups} == {5}
    assert first.in_flight_by_release() == third.in_flight_by_release() == {1: 3, 2: 2}
    second.count(1, -1)
    first.count(1, -1)
    first.count(1, -1)
    assert third.in_flight_by_release() == {2: 2}


def test_more_releases_at_once_than_places_still_count(groups):
    """More than can be open: what cannot be told apart is counted for the last of them, so none of it is lost."""
    for release in range(1, PAIRS + 3):
        groups[0].count(release, 1)
    assert sum(groups[1].in_flight_by_release().values()) == groups[1].in_flight == PAIRS + 2
    for release in range(1, PAIRS + 3):
        groups[0].count(release, -1)
    assert (groups[1].in_flight, groups[1].in_flight_by_release()) == (0, {})


def test_the_requests_of_a_process_that_died_are_gone_and_its_successor_begins_anew(table, groups):
    groups[0].count(1, 1)
    groups[1].admit(1)
    table.clear(0)
    table.clear(2)
    assert (groups[1].in_flight, groups[1].admitted) == (0, 1), "a process that is not there is not waited for"
    again = Group(table, 0)
    assert groups[1].admitted == 0, "one that has just begun is"
    again.admit(1)
    assert groups[1].admitted == 1


def test_a_release_is_admitted_once_every_process_admits_it(groups):
    seen = [groups[0].admitted]
    for group in groups:
        group.admit(1)
        seen.append(groups[0].admitted)
    for group in groups:
        group.admit(2)
        seen.append(groups[0].admitted)
    assert seen == [0, 0, 0, 1, 0, 0, 2]


def test_who_has_measured_nothing_knows_what_the_others_have(groups):
    assert groups[2].lone_s == 0.0
    groups[0].measured(0.010)
    groups[1].measured(0.030)
    assert groups[2].lone_s == pytest.approx(0.020)


def test_an_overload_of_one_is_that_of_all_until_it_is_old(groups):
    assert groups[0].worst_of_others(100.0) == 0.0
    groups[1].overloaded(0.6, until_s=102.0)
    groups[2].overloaded(0.9, until_s=101.0)
    assert [group.worst_of_others(100.0) for group in groups] == pytest.approx([0.9, 0.9, 0.6])
    assert groups[0].worst_of_others(101.5) == pytest.approx(0.6)
    assert groups[1].worst_of_others(101.5) == 0.0, "its own does not count"
    groups[1].overloaded(0.0, until_s=102.0)
    assert groups[0].worst_of_others(101.5) == 0.0


def test_a_process_that_listens_is_seen_to(table, groups):
    assert [group.others_listen for group in groups] == [False] * 3
    groups[1].listen()
    assert [group.others_listen for group in groups] == [True, False, True]
    before = table.beat(1)
    groups[1].beat()
    assert (table.is_listening(1), table.is_listening(0), table.beat(1) > before) == (True, False, True)


class Member:
    """The admission of one process of a group, on a clock that the test turns."""

    def __init__(self, table, place):
        self.now_s = 50.0
        metrics = GatewayMetrics(CollectorRegistry())
        self.in_flight = InFlight(metrics.in_flight, Group(table, place))
        self.admission = Admission(self.in_flight, metrics, lambda: self.now_s)

    def place(self, places=8, release=1):
        opened = Release(Path("releases"), release, {}, config_from_dict({"serve": {"max_in_flight": places}}), None)
        return self.admission.place(opened, INTERACTIVE, self.now_s + 1.0)


def test_each_process_has_its_share_of_the_places():
    table = Table.in_memory(2)
    first, second = Member(table, 0), Member(table, 1)
    with ExitStack() as held:
        for member in (first, second):
            for _ in range(4):
                held.enter_context(member.place())
            with pytest.raises(Overloaded, match="all 4 places are taken"), member.place():
                pass


def test_a_request_beside_one_of_another_process_is_not_alone():
    """Its latency is not what a lone request takes; one that is alone teaches both processes."""
    table = Table.in_memory(2)
    first, second = Member(table, 0), Member(table, 1)
    with ExitStack() as others:
        with first.place():
            others.enter_context(second.place())
            first.now_s += 0.5
        second.now_s += 0.5
    assert second.in_flight.group.lone_s == 0.0
    with first.place():
        first.now_s += 0.010
    assert second.in_flight.group.lone_s == pytest.approx(0.010)


def test_the_limit_begins_with_a_share_and_knows_what_the_others_have_measured():
    table = Table.in_memory(4)
    limit, others = LatencyLimit(lambda: 0.0, Group(table, 0)), Group(table, 1)
    others.measured(0.030)
    assert (limit.steady(64), limit.lone_s) == (START / 4, 0.030)
    limit.observe(0.010, answered=True, alone=True, at_once=1)
    assert limit.lone_s == 0.010, "what this process has measured itself is newer"


async def test_a_switch_is_told_of_every_process_whichever_answers(tmp_path):
    """The old release may close only when neither admits requests for it nor has one in the ensemble."""
    table = Table.in_memory(2)
    async with running(tmp_path, group=Group(table, 0)) as first:
        options = ServerOptions("localhost:0")
        other = Gateway(tmp_path, first.triton, options, 3600.0, CollectorRegistry(), group=Group(table, 1))
        await other.server.start()
        async with (
            grpc.aio.insecure_channel(f"localhost:{first.gateway.server.port}") as to_first,
            grpc.aio.insecure_channel(f"localhost:{other.server.port}") as to_other,
        ):

            async def told():
                statuses = [
                    await ReleaseServiceStub(channel).GetReleaseStatus(GetReleaseStatusRequest())
                    for channel in (to_first, to_other)
                ]
                first_says, other_says = ((status.admitted, dict(status.in_flight)) for status in statuses)
                assert first_says == other_says
                return first_says

            await first.gateway.watch.step()
            assert await told() == (0, {}), "the other has not admitted any yet"
            await other.watch.step()
            assert await told() == (1, {})
            first.peer.release_me.clear()
            call = CandidateServiceStub(to_other).GetCandidates(ask())
            while not first.peer.requests:
                await asyncio.sleep(0.001)
            write_release(tmp_path, 2)
            write_serving_state(tmp_path, ServingState(active=2, open=(1, 2)))
            first.peer.open.add(2)
            await first.gateway.watch.step()
            assert await told() == (0, {1: 1})
            await other.watch.step()
            assert await told() == (2, {1: 1})
            first.peer.release_me.set()
            assert (await call).release == 1
            assert await told() == (2, {})
        await other.server.server.stop(0)
        await other.ensemble.close()
