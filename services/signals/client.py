"""The fetch_signals stage at an address: the same `run` as `SignalFetcher`, answered by the signal service."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import grpc

from pinrec_core.errors import PinrecError, ReleaseNotOpen
from pinrec_core.messages import FetchSignalsInput, Signals, Status
from pinrec_core.serving.error_words import error_of
from pinrec_core.signals.empty import empty_signals
from services.proto.signals_pb2 import GetHistoriesRequest, GetHistoriesResponse, HistoryRequest
from services.proto.signals_pb2_grpc import SignalServiceStub
from services.signals.wire import CODE_METADATA, unpack_history

SHARE_OF_DEADLINE = 0.5
"""Part of the remaining time that histories may take: the rest is for a degraded answer that still arrives in time."""

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the service bounds what it sends
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # a restarted service is found again within a second
]

_NS_PER_MS = 1_000_000

log = logging.getLogger(__name__)


class RemoteSignals:
    """Asks the signal service; one call a release in the batch, all in flight together. Thread-safe.

    `content_dim` is D_sem of the releases asked for, so that a degraded answer has their shape. Where the service does
    not answer in time the history is empty and the status says SIGNALS_UNAVAILABLE.
    """

    def __init__(self, address: str, content_dim: int) -> None:
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = SignalServiceStub(self._channel)
        self._content_dim = content_dim

    def run(self, batch: Sequence[FetchSignalsInput]) -> list[Signals | PinrecError]:
        """Signals of each request, in order; ReleaseNotOpen for those whose release the service does not hold.

        `deadline_ns` counts `remaining_ms` from this call's start. Never raises a PinrecError.
        """
        arrival_ns = time.monotonic_ns()
        answers: dict[int, Signals | PinrecError] = {}
        groups: dict[int, list[int]] = {}
        for place, request in enumerate(batch):
            groups.setdefault(request.release, []).append(place)
        calls = {release: self._call(release, [batch[place] for place in places]) for release, places in groups.items()}
        for release, places in groups.items():
            deadlines = [arrival_ns + batch[place].remaining_ms * _NS_PER_MS for place in places]
            answers.update(zip(places, self._answers(calls[release], deadlines), strict=True))
        return [answers[place] for place in range(len(batch))]

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _call(self, release: int, requests: Sequence[FetchSignalsInput]) -> grpc.Future:
        message = GetHistoriesRequest(
            release=release,
            requests=[
                HistoryRequest(
                    user_id=request.user_id,
                    surface=request.surface,
                    search_query=request.search_query,
                    request_time_ms=request.request_time_ms,
                )
                for request in requests
            ],
        )
        remaining_s = min(request.remaining_ms for request in requests) / 1_000
        return self._stub.GetHistories.future(message, timeout=remaining_s * SHARE_OF_DEADLINE)

    def _answers(self, call: grpc.Future, deadlines: Sequence[int]) -> Sequence[Signals | PinrecError]:
        try:
            response: GetHistoriesResponse = call.result()
        except grpc.RpcError as failure:
            error = _typed_error(failure)
            if isinstance(error, ReleaseNotOpen):
                return [error for _ in deadlines]
            log.warning("signal service: %s %s", failure.code().name, failure.details())
            degraded = Status.COLD_START | Status.SIGNALS_UNAVAILABLE
            return [empty_signals(self._content_dim, degraded, deadline_ns) for deadline_ns in deadlines]
        return [
            unpack_history(history, self._content_dim, deadline_ns)
            for history, deadline_ns in zip(response.histories, deadlines, strict=True)
        ]


def _typed_error(failure: grpc.RpcError) -> PinrecError | None:
    """The error that the service raised on purpose, None if the call failed otherwise."""
    for key, code in failure.trailing_metadata() or ():
        if key == CODE_METADATA:
            return error_of(f"[{code}] {failure.details()}")
    return None
