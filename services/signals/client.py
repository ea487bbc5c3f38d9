"""The fetch_signals stage at an address: the same `run` as `SignalFetcher`, answered by the signal service."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future

import grpc

from pinrec_core.errors import PinrecError, ReleaseNotOpen
from pinrec_core.messages import FetchSignalsInput, Signals, Status
from pinrec_core.release import Release
from pinrec_core.schema import SEARCH_ACTION, ItemType
from pinrec_core.serving.error_words import error_of
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from pinrec_core.signals.empty import empty_signals
from pinrec_core.signals.query_content import QueryContent
from pinrec_core.text_encoder import normalize_text, query_item_id
from services.common.client import open_channel
from services.common.outage import Outage
from services.proto.signals_pb2 import GetHistoriesRequest, GetHistoriesResponse, HistoryRequest
from services.proto.signals_pb2_grpc import SignalServiceStub
from services.signals.wire import CODE_METADATA, unpack_history

SHARE_OF_DEADLINE = 0.5
"""Part of the remaining time that histories may take: the rest is for a degraded answer that still arrives in time."""

HANGING_WAIT_S = 0.05
"""How long a service is waited for that left a call unanswered. The call itself goes on, and its answer ends this.

Else each batch in turn would wait for half of its deadline, those behind it for all of theirs, and popular lists would
be all that is left to answer with.
"""

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the service bounds what it sends
    *QUICK_RECONNECT,
]

_NS_PER_MS = 1_000_000

log = logging.getLogger(__name__)


class RemoteSignals:
    """Asks the signal service; one call a release in the batch, all in flight together. Thread-safe.

    Where the service does not answer in time the status says SIGNALS_UNAVAILABLE and the history is empty, but for the
    request's search query: `release` (whose D_sem all releases asked for share) makes its row here.
    """

    def __init__(self, address: str, release: Release) -> None:
        self._channel = open_channel(address, _CHANNEL_OPTIONS)
        self._stub = SignalServiceStub(self._channel)
        self._release = release
        self._query_content = QueryContent(release.text_encoder)
        self._outage = Outage(f"signal service {address}", log)
        self._hangs = False

    def run(self, batch: Sequence[FetchSignalsInput]) -> list[Signals | PinrecError]:
        """Signals of each request, in order; ReleaseNotOpen for those whose release the service does not hold.

        `deadline_ns` counts `remaining_ms` from this call's start. Never raises a PinrecError.
        """
        arrival_ns = time.monotonic_ns()
        answers: dict[int, Signals | PinrecError] = {}
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(batch):
            groups.setdefault(request.release, []).append(place)
        start = self._begin if self._hangs or len(groups) > 1 else self._finish
        calls = {
            release: start(*_asked(release, [batch[place] for place in places])) for release, places in groups.items()
        }
        for release, places in groups.items():
            requests = [batch[place] for place in places]
            deadlines = [arrival_ns + request.remaining_ms * _NS_PER_MS for request in requests]
            answers.update(zip(places, self._answers(calls[release], requests, deadlines), strict=True))
        return [answers[place] for place in range(len(batch))]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _begin(self, message: GetHistoriesRequest, timeout_s: float) -> grpc.Future:
        """A call in the background."""
        call = self._stub.GetHistories.future(message, timeout=timeout_s)
        call.add_done_callback(lambda ended: self._note_end(timeout_s, ended.code()))
        return call

    def _finish(self, message: GetHistoriesRequest, timeout_s: float) -> Future[GetHistoriesResponse]:
        """A call that has ended: for one in the background gRPC starts a thread, which costs more than the call."""
        ended: Future[GetHistoriesResponse] = Future()
        try:
            ended.set_result(self._stub.GetHistories(message, timeout=timeout_s))
            self._note_end(timeout_s, grpc.StatusCode.OK)
        except grpc.RpcError as failure:
            ended.set_exception(failure)
            self._note_end(timeout_s, failure.code())
        return ended

    def _note_end(self, timeout_s: float, code: grpc.StatusCode) -> None:
        """A call has ended: one in the background maybe long after its batch was answered, on a thread of gRPC's."""
        if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self._hangs = False
        elif timeout_s >= HANGING_WAIT_S:  # less time says nothing of the service
            self._hangs = True

    def _answers(
        self,
        call: grpc.Future | Future[GetHistoriesResponse],
        requests: Sequence[FetchSignalsInput],
        deadlines: Sequence[int],
    ) -> Sequence[Signals | PinrecError]:
        try:
            response: GetHistoriesResponse = call.result(HANGING_WAIT_S if self._hangs else None)
        except grpc.FutureTimeoutError:
            self._outage.failed(self._outage.reason or "it does not answer")
            return self._all_degraded(requests, deadlines)
        except grpc.RpcError as failure:
            error = _typed_error(failure)
            if isinstance(error, ReleaseNotOpen):
                return [error for _ in deadlines]
            self._outage.failed(f"{failure.code().name} {failure.details()}")
            return self._all_degraded(requests, deadlines)
        if len(response.histories) != len(requests):
            self._outage.failed(f"{len(response.histories)} histories for {len(requests)} requests")
            return self._all_degraded(requests, deadlines)
        self._outage.ended()
        return [
            unpack_history(history, self._release.content_dim, deadline_ns)
            for history, deadline_ns in zip(response.histories, deadlines, strict=True)
        ]

    def _all_degraded(
        self, requests: Sequence[FetchSignalsInput], deadlines: Sequence[int]
    ) -> Sequence[Signals | PinrecError]:
        return [self._degraded(request, deadline) for request, deadline in zip(requests, deadlines, strict=True)]

    def _degraded(self, request: FetchSignalsInput, deadline_ns: int) -> Signals:
        """No history; the request's search query all the same, as `SignalFetcher` would put it."""
        status = Status.COLD_START | Status.SIGNALS_UNAVAILABLE
        signals = empty_signals(self._release.content_dim, status, deadline_ns)
        if normalize_text(request.search_query):
            signals.content, signals.content_scale = self._query_content.of([request.search_query])
            signals.item_ids[:] = query_item_id(request.search_query)
            signals.item_types[:] = ItemType.SEARCH_QUERY
            signals.actions[:] = self._release.vocabulary.action_code(SEARCH_ACTION)
            signals.surfaces[:] = request.surface
            signals.timestamps_ms[:] = request.request_time_ms
            signals.sequence_length = 1
        return signals


def _asked(release: int, requests: Sequence[FetchSignalsInput]) -> tuple[GetHistoriesRequest, float]:
    """The call for some requests of one release, and the seconds that it may take.

    Those of the request that has most time: one in haste must not take the histories of all that it travels with.
    """
    message = GetHistoriesRequest(
        release=release,
        requests=[
            HistoryRequest(
                user_id=request.user_id,
                surface=request.surface,
                search_query=request.search_query,
                request_time_ms=request.request_time_ms,
                trace_parent=request.trace_parent,
            )
            for request in requests
        ],
    )
    return message, max(request.remaining_ms for request in requests) / 1_000 * SHARE_OF_DEADLINE


def _typed_error(failure: grpc.RpcError) -> PinrecError | None:
    """The error that the service raised on purpose, None if the call failed otherwise."""
    for key, code in failure.trailing_metadata() or ():
        if key == CODE_METADATA:
            return error_of(f"[{code}] {failure.details()}")
    return None
