"""The ensemble as one call: a message to tensors, tensors to an answer, Triton's errors to ours."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from pinrec_core.messages import CandidateRequest
from pinrec_core.serving.contract import ENSEMBLE, NUMPY_OF, STAGES
from pinrec_core.serving.error_words import error_from_text
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from pinrec_core.serving.triton_io import decode_fields, encode_fields
from pinrec_core.serving.triton_tls import triton_client_tls
from services.common.tracing import NO_TRACING, Tracing
from services.gateway.reply import PathOutput

CHANNEL_OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),  # with dns:///, over every replica behind a headless service
    *QUICK_RECONNECT,
    ("grpc.max_receive_message_length", 16 << 20),
]

_ECHOES = {name for stage in STAGES for name in (stage.release_tensor, stage.elapsed_tensor)}
_FIELDS = tuple(spec for spec in ENSEMBLE.outputs if spec.name not in _ECHOES)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EnsembleAnswer:
    """The path's output, microseconds of each stage's own work, and the release that each stage worked for."""

    output: PathOutput
    stage_us: dict[str, int]
    stage_releases: dict[str, int]


class Ensemble:
    """A Triton that serves the ensemble at `address` ("host:port" or "dns:///name:port"), as the model `name`."""

    def __init__(self, address: str, tracing: Tracing = NO_TRACING, name: str = ENSEMBLE.name) -> None:
        self._tracing = tracing
        self._name = name
        self._client = triton.InferenceServerClient(address, channel_args=CHANNEL_OPTIONS, **triton_client_tls())

    async def infer(self, request: CandidateRequest, timeout_s: float, request_id: str) -> EnsembleAnswer:
        """One user's request through all four stages.

        Raises DeadlineExceeded after `timeout_s`, Unavailable if Triton or a stage is down, else what the stage raised.
        """
        arrays = encode_fields(ENSEMBLE.inputs, request)
        inputs = []
        for spec in ENSEMBLE.inputs:
            batch_of_one = arrays[spec.name][None]
            tensor = triton.InferInput(spec.name, list(batch_of_one.shape), spec.dtype)
            inputs.append(tensor.set_data_from_numpy(batch_of_one))
        with self._tracing.call(ENSEMBLE.name) as span:
            try:
                result = await self._client.infer(
                    self._name,
                    inputs,
                    request_id=request_id,
                    client_timeout=max(timeout_s, 0.0),
                    headers=span.headers,  # for Triton's own spans, where they are on
                    parameters=span.headers,  # for the stages: headers do not reach them
                )
            except InferenceServerException as error:
                log.debug("Triton: %s", error)
                raise error_from_text(str(error.message()), str(error.status())) from error
            answer = _decode(result)
            span.note(**{f"{stage}_us": us for stage, us in answer.stage_us.items()})
        return answer

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()


def _decode(result: Any) -> EnsembleAnswer:
    response = result.get_response()
    raw = zip(response.outputs, response.raw_output_contents, strict=True)  # one pass: `as_numpy` looks each name up
    tensors = {out.name: np.frombuffer(data, NUMPY_OF[out.datatype]).reshape(out.shape) for out, data in raw}
    arrays = {spec.name: tensors[spec.name][0] for spec in ENSEMBLE.outputs}
    return EnsembleAnswer(
        output=PathOutput(**decode_fields(_FIELDS, arrays)),
        stage_us={stage.name: int(arrays[stage.elapsed_tensor][0]) for stage in STAGES},
        stage_releases={stage.name: int(arrays[stage.release_tensor][0]) for stage in STAGES},
    )
