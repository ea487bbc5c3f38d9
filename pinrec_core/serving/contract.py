"""Every tensor between the stages and of the ensemble, said once and derived from `pinrec_core/messages.py`.

`tests/contract/test_contract.py` holds each `model_repository/*/config.pbtxt` to these tables: names, dtypes, dims.
Letters in dims: see `messages.py`. No tensor is optional, since a batch is cut wherever presence differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pinrec_core import messages

MAX_BATCH_SIZE = 32
"""Requests that Triton hands a stage at once. The ensemble's may not exceed any step's, so all have the same."""

NUMPY_OF: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
}
"""numpy scalar type of each Triton dtype that travels here."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: `kind` is the Python type of the message's field (int, bool, str or ndarray), `dims` are letters."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    kind: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Dims of one request as `config.pbtxt` says them, without the batch axis: -1 = any, a scalar is `(1,)`."""
        return (-1,) * len(self.dims) or (1,)

    @property
    def is_ragged(self) -> bool:
        """Whether two requests of one batch may differ in shape."""
        return bool(self.dims)


@dataclass(frozen=True)
class Contract:
    """One model of the repository: what it is sent and what it answers."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class StageContract(Contract):
    """A stage: its messages, and beside its output's fields an echo of the release and the time that it took."""

    input: type[Any]
    output: type[Any]

    @property
    def output_fields(self) -> tuple[TensorSpec, ...]:
        """The outputs that are fields of `output`."""
        return self.outputs[:-2]

    @property
    def release_tensor(self) -> str:
        """Output that echoes the release which answered."""
        return f"{self.name}_release"

    @property
    def elapsed_tensor(self) -> str:
        """Output with the microseconds that the request's batch took inside the stage."""
        return f"{self.name}_us"


def tensors_of(message: type[Any]) -> tuple[TensorSpec, ...]:
    """The tensors of a message's fields, in order."""
    specs = []
    for name, (annotated, tensor) in messages.tensor_fields(message).items():  # type: ignore[arg-type]
        kind = annotated if isinstance(annotated, type) and annotated in (int, bool, str) else np.ndarray
        specs.append(TensorSpec(name, tensor.dtype, tensor.dims, kind))
    return tuple(specs)


def echoes_of(stage: str) -> tuple[TensorSpec, TensorSpec]:
    """What every stage answers beside its message: `<stage>_release` and `<stage>_us`, INT64 [1]."""
    return TensorSpec(f"{stage}_release", "INT64", (), int), TensorSpec(f"{stage}_us", "INT64", (), int)


def _stage(name: str, request: type[Any], answer: type[Any]) -> StageContract:
    return StageContract(name, tensors_of(request), (*tensors_of(answer), *echoes_of(name)), request, answer)


FETCH_SIGNALS = _stage("fetch_signals", messages.FetchSignalsInput, messages.Signals)
EMBED_ITEMS = _stage("embed_items", messages.EmbedItemsInput, messages.IdEmbeddings)
GENERATE = _stage("generate", messages.GenerateInput, messages.Generated)
RETRIEVE = _stage("retrieve", messages.RetrieveInput, messages.Candidates)

STAGES = (FETCH_SIGNALS, EMBED_ITEMS, GENERATE, RETRIEVE)
"""In the order of the chain."""

_FROM_SIGNALS = ("history_length", "realtime_events", "status")
_FROM_GENERATED = ("step", "target_offset", "num_generated", "num_kept")


def _named(stage: StageContract, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(spec for spec in stage.outputs if spec.name in names)


ENSEMBLE = Contract(
    name="pinrec",
    inputs=tensors_of(messages.CandidateRequest),
    outputs=(
        *RETRIEVE.output_fields,
        *_named(GENERATE, _FROM_GENERATED),
        *_named(FETCH_SIGNALS, _FROM_SIGNALS),
        *(echo for stage in STAGES for echo in echoes_of(stage.name)),
    ),
)
"""The chain as one model, which is all that the gateway calls."""
