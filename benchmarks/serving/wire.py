"""Bytes of the messages on the wire."""

from __future__ import annotations

import grpc.aio
from tritonclient.grpc.service_pb2 import ModelInferRequest

from pinrec_core.messages import CandidateRequest
from pinrec_core.serving.contract import ENSEMBLE
from pinrec_core.serving.triton_io import encode_fields

METHOD = "/inference.GRPCInferenceService/ModelInfer"


def ensemble_request(request: CandidateRequest, name: str = ENSEMBLE.name) -> bytes:
    """The message that asks a Triton for an ensemble's answer."""
    message = ModelInferRequest(model_name=name)
    arrays = encode_fields(ENSEMBLE.inputs, request)
    for spec in ENSEMBLE.inputs:
        array = arrays[spec.name][None]
        message.inputs.add(name=spec.name, datatype=spec.dtype, shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    return bytes(message.SerializeToString())


async def ensemble_bytes(address: str, request: CandidateRequest) -> tuple[int, int]:
    """Bytes of the request and of the answer to it."""
    sent = ensemble_request(request)
    async with grpc.aio.insecure_channel(address) as channel:
        answer: bytes = await channel.unary_unary(METHOD)(sent)
    return len(sent), len(answer)
