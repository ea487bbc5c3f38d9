"""A stage on another host's Triton, with the same `run` as the local one. tritonclient is needed only here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from pinrec_core.errors import DeadlineExceeded, PinrecError
from pinrec_core.serving.contract import StageContract
from pinrec_core.serving.deadline import NS_PER_MS, deadline_of
from pinrec_core.serving.error_words import UNEXPECTED, error_from_text
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from pinrec_core.serving.triton_io import decode_fields, encode_fields
from pinrec_core.serving.triton_tls import triton_client_tls

CHANNEL_OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),  # with dns:///, over every replica behind a headless service
    *QUICK_RECONNECT,
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

log = logging.getLogger(__name__)


class RemoteStage:
    """The model `contract.name` of the Triton at `address` ("host:port" or "dns:///name:port").

    Every request of a batch is sent at once as a call of its own: the other side's batcher joins them again, together
    with those of other callers, and each fails or succeeds alone.
    """

    def __init__(self, address: str, contract: StageContract, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._client = triton.InferenceServerClient(address, channel_args=CHANNEL_OPTIONS, **triton_client_tls())
        self._contract = contract
        self._now_ns = now_ns

    def run(self, batch: Sequence[Any]) -> list[Any]:
        """One message or PinrecError a request, in order. Each waits no longer than its deadline."""
        calls = [self._send(message) for message in batch]
        return [self._receive(call, message) for call, message in zip(calls, batch, strict=True)]

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _send(self, message: Any) -> Future[Any]:
        """Start a call. What is left of the deadline travels, since clocks of hosts differ."""
        call: Future[Any] = Future()
        now_ns = self._now_ns()
        remaining_ms = (deadline_of(message, now_ns) - now_ns) // NS_PER_MS
        if remaining_ms <= 0:
            call.set_exception(DeadlineExceeded(f"the deadline passed before {self._contract.name}"))
            return call
        sent = replace(message, deadline_ns=0, remaining_ms=remaining_ms)

        def done(result: Any, error: Exception | None) -> None:
            call.set_exception(error) if error is not None else call.set_result(result)

        self._client.async_infer(
            self._contract.name, self._tensors(sent), callback=done, client_timeout=remaining_ms / 1000
        )
        return call

    def _tensors(self, message: Any) -> list[Any]:
        tensors = []
        arrays = encode_fields(self._contract.inputs, message)
        for spec in self._contract.inputs:
            batch_of_one = arrays[spec.name][None]
            tensor = triton.InferInput(spec.name, list(batch_of_one.shape), spec.dtype)
            tensors.append(tensor.set_data_from_numpy(batch_of_one))
        return tensors

    def _receive(self, call: Future[Any], message: Any) -> Any:
        try:
            result = call.result()
        except PinrecError as error:
            return error
        except InferenceServerException as error:
            log.warning("%s at a distance: %s %s", self._contract.name, error.status(), error.message())
            return error_from_text(str(error.message()), str(error.status()))
        arrays = {spec.name: result.as_numpy(spec.name)[0] for spec in self._contract.outputs}
        echo = int(arrays[self._contract.release_tensor][0])
        if echo != message.release:
            log.error("%s answered for release %d; asked for %d", self._contract.name, echo, message.release)
            return PinrecError(UNEXPECTED)
        return self._contract.output(**decode_fields(self._contract.output_fields, arrays))
