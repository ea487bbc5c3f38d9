"""The keeper's calls of its own Triton: a canary, a ping of one stage, and loading a stage again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from pinrec_core.errors import Unavailable
from pinrec_core.release import Release
from pinrec_core.serving.canary import canary_request, ping_tensors
from pinrec_core.serving.contract import ENSEMBLE, STAGES, Contract
from pinrec_core.serving.error_words import error_from_text, error_of
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from pinrec_core.serving.triton_io import encode_fields
from pinrec_core.serving.triton_tls import triton_client_tls

CANARY_TIMEOUT_S = 3.0
"""Longer than the queue that the gateway allows, so that a busy Triton is not taken for a dead one."""

PING_TIMEOUT_S = 2.5
"""Triton takes 1.2 s to say that a stage's process has died."""

LOAD_TIMEOUT_S = 60.0

ADMIN_KEY = "triton-grpc-protocol-admin-key"
"""Metadata that opens what `command.ADMIN_PROTOCOLS` lists; its value is the key."""

_STAGES = {stage.name: stage for stage in STAGES}


class TritonClient:
    """A tritonserver on this host."""

    def __init__(self, address: str, admin_key: str) -> None:
        self._client = triton.InferenceServerClient(address, channel_args=QUICK_RECONNECT, **triton_client_tls())
        self._admin = {ADMIN_KEY: admin_key}

    def is_live(self, timeout_s: float = 1.0) -> bool:
        """Whether the server itself answers: its port is open once every model is loaded."""
        try:
            return bool(self._client.is_server_live(client_timeout=timeout_s))
        except InferenceServerException:
            return False

    def canary(self, release: Release) -> None:
        """One request through the ensemble. Raises PinrecError unless it is answered."""
        request = canary_request(release, int(CANARY_TIMEOUT_S * 1000))
        arrays = {name: array[None] for name, array in encode_fields(ENSEMBLE.inputs, request).items()}
        try:
            self._infer(ENSEMBLE, arrays, CANARY_TIMEOUT_S)
        except InferenceServerException as error:
            raise error_from_text(str(error.message()), str(error.status())) from error

    def ping(self, stage: str) -> None:
        """Raises Unavailable unless the stage answers; what it answers is no matter."""
        contract = _STAGES[stage]
        try:
            self._infer(contract, ping_tensors(contract), PING_TIMEOUT_S)
        except InferenceServerException as error:
            text = str(error.message())
            if error_of(text) is None:
                raise Unavailable(f"{stage} does not answer: {text}") from error

    def load_again(self, stage: str, models: tuple[str, ...]) -> None:
        """Unload the stage, load it, and load what of `models` went away with it. Raises Unavailable."""
        try:
            self._client.unload_model(stage, headers=self._admin, client_timeout=LOAD_TIMEOUT_S)
            self._client.load_model(stage, headers=self._admin, client_timeout=LOAD_TIMEOUT_S)
            for model in models:
                if not self._client.is_model_ready(model, client_timeout=PING_TIMEOUT_S):
                    self._client.load_model(model, headers=self._admin, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise Unavailable(f"{stage} cannot be loaded again: {error.message()}") from error

    def close(self) -> None:
        """Close the channel."""
        self._client.close()

    def _infer(self, model: Contract, arrays: Mapping[str, NDArray[Any]], timeout_s: float) -> None:
        inputs = []
        for spec in model.inputs:
            array = arrays[spec.name]
            inputs.append(triton.InferInput(spec.name, list(array.shape), spec.dtype).set_data_from_numpy(array))
        self._client.infer(model.name, inputs, client_timeout=timeout_s)
