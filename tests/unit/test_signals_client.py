"""The client against servers that are absent, slow or refuse; the real one: tests/e2e/test_signal_service.py."""

import logging
import time
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import grpc
import numpy as np
import pytest

from pinrec_core.codec import quantize
from pinrec_core.errors import ReleaseNotOpen
from pinrec_core.messages import FetchSignalsInput, Status
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder, query_item_id
from services.proto import signals_pb2, signals_pb2_grpc
from services.signals.client import RemoteSignals
from services.signals.wire import CODE_METADATA
from tests.conftest import eventually

ENCODER = TextEncoder.fit(["red bicycle", "blue sky"], dim=2)
RELEASE = SimpleNamespace(
    content_dim=2, text_encoder=ENCODER, vocabulary=Vocabulary(("save",), ("save", "search"), ("home", "search"))
)
"""What the client reads of a release."""

DEGRADED = Status.COLD_START | Status.SIGNALS_UNAVAILABLE


def ask(release, remaining_ms=2_000):
    return FetchSignalsInput(7, 1, "", 1_700_000_000_000, release, remaining_ms)


class Scripted(signals_pb2_grpc.SignalServiceServicer):
    """Answers as the release number says."""

    def GetHistories(self, request, context):  # noqa: N802  the name in the proto
        if request.release == 404:
            context.set_trailing_metadata(((CODE_METADATA, "RELEASE_NOT_OPEN"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "release 404 is not open; open: [1]")
        if request.release == 408:
            while context.is_active():
                time.sleep(0.01)
        if request.release == 500:
            context.abort(grpc.StatusCode.INTERNAL, "internal error")
        history = signals_pb2.History(
            content=bytes([1, 2, 3, 4]),
            content_scale=np.array([0.5, 2], "<f4").tobytes(),
            item_ids=np.array([-3, 2**62], "<i8").tobytes(),
            item_types=b"\0\1",
            actions=np.array([1, 2], "<i4").tobytes(),
            surfaces=np.array([1, 0], "<i4").tobytes(),
            timestamps_ms=np.array([5, 6], "<i8").tobytes(),
            history_length=2,
            realtime_events=1,
            status=Status.REALTIME_UNAVAILABLE if request.release == 4 else Status.OK,
        )
        if request.release == 5:
            history = signals_pb2.History(status=Status.COLD_START | Status.REALTIME_UNAVAILABLE)
        answered = len(request.requests) - (request.release == 6)
        return signals_pb2.GetHistoriesResponse(histories=[history] * answered)


@contextmanager
def remote_to(address):
    remote = RemoteSignals(address, RELEASE)
    yield remote
    remote.close()


@pytest.fixture(scope="module")
def address():
    server = grpc.server(futures.ThreadPoolExecutor(4))
    signals_pb2_grpc.add_SignalServiceServicer_to_server(Scripted(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0).wait()


@pytest.fixture
def scripted(address):
    with remote_to(address) as remote:
        yield remote


def test_a_history_is_unpacked_with_the_contract_s_dtypes(scripted):
    (signals,) = scripted.run([ask(1)])
    assert signals.content.tolist() == [[1, 2], [3, 4]]
    assert signals.content_scale.tolist() == [0.5, 2.0]
    assert signals.item_ids.tolist() == [-3, 2**62]
    assert signals.item_types.tolist() == [0, 1]
    assert signals.seen_item_ids.tolist() == [-1]
    assert (signals.sequence_length, signals.history_length, signals.realtime_events) == (2, 2, 1)
    assert signals.status == Status.OK
    assert signals.content.flags.writeable
    dtypes = [getattr(signals, name).dtype for name in ("content", "item_types", "actions", "surfaces")]
    assert dtypes == [np.int8, np.uint8, np.int32, np.int32]


def test_no_service_means_degraded_signals():
    with remote_to("localhost:9") as remote:  # the discard port: nobody listens
        before = time.monotonic_ns()
        first, second = remote.run([ask(1), ask(2, remaining_ms=500)])
    assert (first.status, second.status) == (DEGRADED, DEGRADED)
    assert first.content.shape == (1, 2)
    assert (first.sequence_length, first.seen_item_ids.tolist()) == (0, [-1])
    assert before + 2_000_000_000 <= first.deadline_ns
    assert first.deadline_ns - second.deadline_ns == 1_500_000_000


def test_a_degraded_answer_keeps_the_search_query_of_its_request():
    with remote_to("localhost:9") as remote:
        asked = FetchSignalsInput(7, 2, "Red  bicycle", 1_700_000_000_000, 1, 2_000)
        found, blank = remote.run([asked, replace(asked, search_query=" ")])
    content, scale = quantize(ENCODER.encode(["red bicycle"]))
    assert (found.sequence_length, found.history_length, found.status) == (1, 0, DEGRADED)
    assert found.item_ids.tolist() == [query_item_id("red bicycle")]
    assert found.item_types.tolist() == [ItemType.SEARCH_QUERY]
    assert (found.actions.tolist(), found.surfaces.tolist()) == ([2], [2])
    assert found.timestamps_ms.tolist() == [1_700_000_000_000]
    assert (found.content.tolist(), found.content_scale.tolist()) == (content.tolist(), scale.tolist())
    assert blank.sequence_length == 0


def test_a_history_of_the_batch_view_alone_says_so(scripted):
    (signals,) = scripted.run([ask(4)])
    assert signals.status == Status.REALTIME_UNAVAILABLE
    (signals,) = scripted.run([ask(5)])
    assert signals.status == Status.COLD_START | Status.REALTIME_UNAVAILABLE


def test_one_warning_a_failing_period(scripted, caplog):
    scripted.run([ask(1)])  # whatever failed in another test is over
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for release in (500, 500, 1, 1, 500):
            scripted.run([ask(release)])
    lines = [record.message for record in caplog.records if record.name == "services.signals.client"]
    assert [line.split(": ")[-1][:22] for line in lines if "fails" in line] == ["INTERNAL internal error"[:22]] * 2
    assert sum("works again after 2 failures" in line for line in lines) == 1
    assert len(lines) == 3


def test_a_late_or_failing_service_means_degraded_signals_with_time_left(scripted):
    (late,) = scripted.run([ask(408, remaining_ms=400)])
    assert late.status == DEGRADED
    assert late.deadline_ns > time.monotonic_ns() - 10_000_000_000
    (failed,) = scripted.run([ask(500)])
    assert failed.status == DEGRADED


def test_an_answer_with_too_few_histories_is_none(scripted):
    assert [found.status for found in scripted.run([ask(6), ask(6)])] == [DEGRADED, DEGRADED]


def test_a_request_in_haste_does_not_hurry_the_others(scripted):
    hasty, patient = scripted.run([ask(1, remaining_ms=0), ask(1, remaining_ms=2_000)])
    assert (hasty.status, patient.status) == (Status.OK, Status.OK)
    assert hasty.deadline_ns < time.monotonic_ns() < patient.deadline_ns


def test_a_service_that_hangs_takes_half_a_deadline_once(scripted):
    """The second request has ten minutes: were half of them waited for, this test would not end."""
    (late,) = scripted.run([ask(408, remaining_ms=400)])
    (next_one,) = scripted.run([ask(408, remaining_ms=600_000)])
    assert (late.status, next_one.status) == (DEGRADED, DEGRADED)
    assert eventually(lambda: scripted.run([ask(1)])[0].status == Status.OK and not scripted._hangs)


def test_too_little_time_says_nothing_of_the_service(scripted):
    scripted._note_end(0.001, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert not scripted._hangs
    scripted._note_end(0.5, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert scripted._hangs
    scripted._note_end(0.5, grpc.StatusCode.UNAVAILABLE)
    assert not scripted._hangs


def test_a_release_that_is_not_open_is_an_error_of_its_own_requests(scripted):
    fine, refused, also_fine, also_refused = scripted.run([ask(1), ask(404), ask(1), ask(404)])
    assert fine.item_ids.tolist() == also_fine.item_ids.tolist() == [-3, 2**62]
    for error in (refused, also_refused):
        assert isinstance(error, ReleaseNotOpen)
        assert (error.release, error.message) == (404, "release 404 is not open; open: [1]")


def test_no_requests_no_calls(scripted):
    assert scripted.run([]) == []
