"""Items added to and deleted from a running stack: in the next answers, in histories, and still so after a restart."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pytest

from pinrec_core.messages import CandidateRequest
from pinrec_core.recommend import Recommendation, Stages, recommend
from pinrec_core.release import open_release
from services.common.probe import serves
from services.gateway.reply import PathOutput
from services.gateway.triton_client import Ensemble
from services.items.client import unpack_changes
from services.proto import items_pb2, signals_pb2
from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.items_pb2_grpc import ItemServiceStub
from services.proto.signals_pb2_grpc import SignalServiceStub
from tests.conftest import eventually, quiet_environment, up_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NEW = 5_000_000_000


@dataclass
class Running:
    """Stubs of a running stack."""

    candidates: CandidateServiceStub
    signals: SignalServiceStub
    items: ItemServiceStub

    def everything(self) -> set[int]:
        """All items that one request can be given."""
        request = GetCandidatesRequest(
            user_id=-1, surface="home", budget={"save": 0.5, "click": 0.5}, num_candidates=320, include_seen=True
        )
        return {candidate.item_id for candidate in self.candidates.GetCandidates(request, timeout=30).candidates}

    def content_scale(self, user_id: int) -> float:
        """Of the newest event in a user's history: 0 = it has no content."""
        asked = signals_pb2.GetHistoriesRequest(
            release=1, requests=[signals_pb2.HistoryRequest(user_id=user_id, surface=1)]
        )
        [history] = self.signals.GetHistories(asked, timeout=30).histories
        return float(np.frombuffer(history.content_scale, "<f4")[-1])


def cold_request(release) -> CandidateRequest:
    """A request of a user nobody knows, for 40 items of each outcome."""
    return CandidateRequest(
        user_id=-1,
        surface=1,
        counts=np.full(len(release.vocabulary.outcomes), 40, np.int32),
        search_query="",
        exclude_item_ids=np.empty(0, np.int64),
        include_seen=False,
        request_time_ms=1_800_000_000_000,
        release=release.number,
        remaining_ms=30_000,
    )


async def through_triton(address: str, request: CandidateRequest) -> PathOutput:
    """What the ensemble answers."""
    ensemble = Ensemble(address)
    try:
        return (await ensemble.infer(request, 30.0, request_id="fresh")).output
    finally:
        await ensemble.close()


def in_this_process(release, items: ItemServiceStub, request: CandidateRequest) -> Recommendation:
    """The same path here, with the same changes taken up."""
    stages = Stages.open(release)
    changes = items.GetChanges(items_pb2.GetChangesRequest(release=release.number), timeout=30)
    stages.retrieve.index.apply(unpack_changes(changes))
    [answer] = recommend([request], stages)
    return answer


@contextmanager
def running(stack, log) -> Iterator[Running]:
    """`pinrec up`; it must end without a traceback."""
    with log.open("a") as file:
        up = subprocess.Popen(up_command(stack), env=quiet_environment(), stdout=file, stderr=file)
    try:
        assert eventually(lambda: up.poll() is not None or serves(f"{stack.host}:{stack.gateway_port}"))
        assert up.poll() is None, log.read_text()[-5_000:]
        with ExitStack() as channels:
            gateway, signals, items = (
                channels.enter_context(grpc.insecure_channel(f"{stack.host}:{port}"))
                for port in (stack.gateway_port, stack.signals_port, stack.items_port)
            )
            yield Running(CandidateServiceStub(gateway), SignalServiceStub(signals), ItemServiceStub(items))
        up.terminate()
        assert up.wait(timeout=60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        up.terminate()
        up.wait()


def test_items_come_and_go_and_a_restart_changes_nothing(world, on_free_ports, tmp_path):
    stack = on_free_ports(world.releases, tmp_path / "signals", world.batch_view)
    log = tmp_path / "up.log"
    with running(stack, log) as first:
        before = first.everything()
        gone = sorted(before)[:3]
        added = items_pb2.AddItemsRequest(items=[items_pb2.Item(item_id=NEW, text="mossy brass lantern")])
        first.items.AddItems(added, timeout=30)
        assert eventually(lambda: NEW in first.everything())
        first.items.DeleteItems(items_pb2.DeleteItemsRequest(item_ids=gone), timeout=30)
        assert eventually(lambda: not first.everything() & set(gone))
        assert all(first.everything() == (before | {NEW}) - set(gone) for _ in range(20))
        release = open_release(world.releases, 1)
        request = cold_request(release)
        answer = asyncio.run(through_triton(f"{stack.host}:{stack.triton_grpc_port}", request))
        expected = in_this_process(release, first.items, request).candidates
        np.testing.assert_array_equal(answer.candidate_ids, expected.candidate_ids)
        np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-5)
        event = signals_pb2.Event(user_id=-2, item_id=NEW, item_type="pin", action="save", surface="home")
        event.timestamp_ms = int(time.time() * 1_000)
        first.signals.AppendEvents(signals_pb2.AppendEventsRequest(events=[event]), timeout=30)
        assert eventually(lambda: first.content_scale(-2) > 0)
    with running(stack, log) as second:
        assert second.everything() == (before | {NEW}) - set(gone), "from the first answer on"
        assert eventually(lambda: second.content_scale(-2) > 0)
