"""Triton tensors to messages and back: the only place that knows how a field travels. `pb_utils` is passed in.

Two traps of the server's Python backend with numpy 2, measured on 24.10 (whose pybind11 is older than numpy 2's
memory layout): `as_numpy()` silently repeats the first element, `Tensor(name, array)` sends no bytes, and a BYTES input
kills the stub. So tensors go through DLPack, which is right on every version, and text travels as UINT8.
Tensors of zero size work everywhere (over gRPC, between steps, in ragged batches), so nothing is padded here.
"""

from __future__ import annotations

import ctypes
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import PinrecError
from pinrec_core.serving.contract import NUMPY_OF, StageContract, TensorSpec
from pinrec_core.serving.error_words import UNEXPECTED, error_text

log = logging.getLogger(__name__)

TRACE_PARENT = "traceparent"
"""Parameter of a sampled request: the span of the caller, as W3C writes it."""

V = TypeVar("V")


@dataclass(frozen=True)
class StageAnswer(Generic[V]):
    """What a stage says to one request.

    `value` is a message or the reason there is none, `release` the one that answered (0 if none did), `elapsed_us` the
    microseconds that the request's batch took.
    """

    value: V | PinrecError
    release: int = 0
    elapsed_us: int = 0


def to_array(spec: TensorSpec, value: Any) -> NDArray[Any]:
    """A field as it travels, without the batch axis: scalars `[1]`, text its UTF-8 bytes `[Q]`, arrays as they are."""
    if spec.kind is str:
        return np.frombuffer(value.encode(), dtype=np.uint8)
    array = np.asarray(value, dtype=NUMPY_OF[spec.dtype])
    array = array.reshape(1) if spec.kind is not np.ndarray else array
    if array.ndim != len(spec.shape):
        raise ValueError(f"{spec.name} has shape {array.shape}; expected {len(spec.shape)} axes {spec.dims}")
    return np.ascontiguousarray(array)


def from_array(spec: TensorSpec, array: NDArray[Any]) -> Any:
    """Inverse of `to_array`."""
    if spec.kind is str:
        return array.tobytes().decode()
    if spec.kind is np.ndarray:
        return array
    return spec.kind(array.reshape(-1)[0])


def encode_fields(specs: Sequence[TensorSpec], message: Any) -> dict[str, NDArray[Any]]:
    """Arrays of a message's fields, by tensor name, without the batch axis."""
    return {spec.name: to_array(spec, getattr(message, spec.name)) for spec in specs}


def decode_fields(specs: Sequence[TensorSpec], arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Inverse of `encode_fields`, as keyword arguments of the message. Raises KeyError if a tensor is missing."""
    return {spec.name: from_array(spec, arrays[spec.name]) for spec in specs}


def decode_requests(requests: Sequence[Any], contract: StageContract, pb_utils: Any) -> list[Any]:
    """One message a request, or the PinrecError that answers it: a request that cannot be read fails alone."""
    return [_decode_request(request, contract, pb_utils) for request in requests]


def note_trace_parents(batch: Sequence[Any], requests: Sequence[Any]) -> None:
    """Set `trace_parent` of each message from the parameter of its request, which the ensemble hands to every step."""
    for message, request in zip(batch, requests, strict=True):
        parameters = request.parameters()  # JSON, empty where there are none
        if parameters and not isinstance(message, PinrecError):
            message.trace_parent = str(json.loads(parameters).get(TRACE_PARENT, ""))


def encode_responses(answers: Sequence[StageAnswer[Any]], contract: StageContract, pb_utils: Any) -> list[Any]:
    """One `InferenceResponse` an answer, in order; errors as a `TritonError` that holds `error_text`."""
    return [_encode_response(answer, contract, pb_utils) for answer in answers]


def _decode_request(request: Any, contract: StageContract, pb_utils: Any) -> Any:
    try:
        arrays = {}
        for spec in contract.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
            # A copy: the tensor's memory is Triton's and ends with the request.
            arrays[spec.name] = np.from_dlpack(tensor)[0].copy()  # [1, ...] -> [...]: each request is one user
        return contract.input(**decode_fields(contract.inputs, arrays))
    except Exception:  # the edge: one unreadable request must not fail its batch
        log.exception("%s: a request cannot be decoded", contract.name)
        return PinrecError(UNEXPECTED)


def _encode_response(answer: StageAnswer[Any], contract: StageContract, pb_utils: Any) -> Any:
    if isinstance(answer.value, PinrecError):
        return _error_response(answer.value, pb_utils)
    try:
        arrays = encode_fields(contract.output_fields, answer.value)
        arrays[contract.release_tensor] = np.array([answer.release], dtype=np.int64)
        arrays[contract.elapsed_tensor] = np.array([answer.elapsed_us], dtype=np.int64)
        tensors = [triton_tensor(name, array[None], pb_utils) for name, array in arrays.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
    except Exception:  # the edge: one bad answer must not fail its batch
        log.exception("%s: an answer cannot be encoded", contract.name)
        return _error_response(PinrecError(UNEXPECTED), pb_utils)


def _error_response(error: PinrecError, pb_utils: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(error_text(error)))


def triton_tensor(name: str, array: NDArray[Any], pb_utils: Any) -> Any:
    """A tensor of Triton's with the bytes of an array, whatever numpy made it."""
    if array.size == 0:  # DLPack's check for contiguity does not know empty arrays; without bytes, this way is right
        return pb_utils.Tensor(name, array)
    return pb_utils.Tensor.from_dlpack(name, _Exported(array))


_set_destructor = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(
    ("PyCapsule_SetDestructor", ctypes.pythonapi)
)


class _Exported:
    """A numpy array for `Tensor.from_dlpack`.

    The stub takes the capsule's memory over but renames it to a word that numpy's capsule destructor does not know,
    which then complains on stderr, tensor by tensor. Since the stub frees the memory, the destructor is taken off.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array if array.flags.writeable else array.copy()  # numpy exports no read-only array

    def __dlpack__(self, **_: Any) -> Any:
        capsule = self._array.__dlpack__()
        _set_destructor(capsule, None)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()
