"""What travels between the stages of the serving path: one dataclass a message, one annotation a tensor.

A field's name, Triton dtype and dims are said here once; `serving/contract.py` derives each stage's tensors from it
and a test holds every `config.pbtxt` to that. Letters in dims: T history, S seen items, E excluded items, A outcomes,
K kept embeddings (after compression), D embedding, D_sem content, D_id id embedding, N candidates, Q bytes of text.
Scalars have no dims here and travel as `[1]`; text travels as its UTF-8 bytes (`serving/triton_io.py` says why). Arrays
are numpy without a batch axis: a message is one user's request.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntFlag
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tensor:
    """Triton's name of the dtype and the symbolic dims of a field."""

    dtype: str
    dims: tuple[str, ...] = ()


class Status(IntFlag):
    """Bits of `status`: what the caller should know about how the history was found."""

    OK = 0
    COLD_START = 1
    """No stored event: served from the start token."""
    SIGNALS_UNAVAILABLE = 2
    """The signal service did not answer: degraded to the start token."""
    REALTIME_UNAVAILABLE = 4
    """The realtime view could not be read: the batch view alone made the history."""
    STAGES_UNAVAILABLE = 8
    """No stage answered: popular lists instead. Only the gateway says so."""


UserId = Annotated[int, Tensor("INT64")]
SurfaceCode = Annotated[int, Tensor("INT32")]
Counts = Annotated[NDArray[np.int32], Tensor("INT32", ("A",))]
SearchQuery = Annotated[str, Tensor("UINT8", ("Q",))]
ExcludeItemIds = Annotated[NDArray[np.int64], Tensor("INT64", ("E",))]
IncludeSeen = Annotated[bool, Tensor("BOOL")]
RequestTimeMs = Annotated[int, Tensor("INT64")]
ReleaseNumber = Annotated[int, Tensor("INT64")]
RemainingMs = Annotated[int, Tensor("INT64")]
DeadlineNs = Annotated[int, Tensor("INT64")]
Content = Annotated[NDArray[np.int8], Tensor("INT8", ("T", "D_sem"))]
ContentScale = Annotated[NDArray[np.float32], Tensor("FP32", ("T",))]
ItemIds = Annotated[NDArray[np.int64], Tensor("INT64", ("T",))]
ItemTypes = Annotated[NDArray[np.uint8], Tensor("UINT8", ("T",))]
Actions = Annotated[NDArray[np.int32], Tensor("INT32", ("T",))]
Surfaces = Annotated[NDArray[np.int32], Tensor("INT32", ("T",))]
TimestampsMs = Annotated[NDArray[np.int64], Tensor("INT64", ("T",))]
SequenceLength = Annotated[int, Tensor("INT32")]
SeenItemIds = Annotated[NDArray[np.int64], Tensor("INT64", ("S",))]
Count = Annotated[int, Tensor("INT32")]
IdEmb = Annotated[NDArray[np.float16], Tensor("FP16", ("T", "D_id"))]
Embeddings = Annotated[NDArray[np.float32], Tensor("FP32", ("K", "D"))]
PerEmbedding = Annotated[NDArray[np.int32], Tensor("INT32", ("K",))]
CandidateIds = Annotated[NDArray[np.int64], Tensor("INT64", ("N",))]
Scores = Annotated[NDArray[np.float32], Tensor("FP32", ("N",))]
PerCandidate = Annotated[NDArray[np.int32], Tensor("INT32", ("N",))]


@dataclass
class CandidateRequest:
    """Input of the ensemble: one user's request, resolved with the vocabulary of `release`.

    `counts` are the integer outcome counts (their sum is the number of candidates). `remaining_ms` is what is left of
    the caller's deadline; `fetch_signals` turns it into `deadline_ns` on this host's monotonic clock.
    """

    user_id: UserId
    surface: SurfaceCode
    counts: Counts
    search_query: SearchQuery
    exclude_item_ids: ExcludeItemIds
    include_seen: IncludeSeen
    request_time_ms: RequestTimeMs
    release: ReleaseNumber
    remaining_ms: RemainingMs


@dataclass
class FetchSignalsInput:
    """Input of `fetch_signals`."""

    user_id: UserId
    surface: SurfaceCode
    search_query: SearchQuery
    request_time_ms: RequestTimeMs
    release: ReleaseNumber
    remaining_ms: RemainingMs
    trace_parent: str = ""
    """The span that a sampled request belongs to, as W3C writes it: no tensor, Triton's own trace brings it."""


@dataclass
class Signals:
    """Output of `fetch_signals`: a user's history, oldest first, and what was seen.

    The first `sequence_length` rows are valid (an empty history still travels as one row of zeros). With a search query
    its row is the last valid one; `history_length` counts stored events only. `item_ids` of search queries are hashes
    of their text and have no id embedding. `seen_item_ids`: pins of the stored history before truncation, newest kept,
    at most `schema.MAX_SEEN_ITEMS`; padded by one -1 if empty.
    """

    content: Content
    content_scale: ContentScale
    item_ids: ItemIds
    item_types: ItemTypes
    actions: Actions
    surfaces: Surfaces
    timestamps_ms: TimestampsMs
    sequence_length: SequenceLength
    history_length: Count
    seen_item_ids: SeenItemIds
    realtime_events: Count
    status: Count
    deadline_ns: DeadlineNs


@dataclass
class EmbedItemsInput:
    """Input of `embed_items`. `deadline_ns` 0 means: count `remaining_ms` from arrival (a call from another host)."""

    item_ids: ItemIds
    release: ReleaseNumber
    deadline_ns: DeadlineNs
    remaining_ms: RemainingMs


@dataclass
class IdEmbeddings:
    """Output of `embed_items`, one row an item id."""

    id_emb: IdEmb


@dataclass
class GenerateInput:
    """Input of `generate`."""

    content: Content
    content_scale: ContentScale
    item_types: ItemTypes
    actions: Actions
    surfaces: Surfaces
    timestamps_ms: TimestampsMs
    sequence_length: SequenceLength
    id_emb: IdEmb
    surface: SurfaceCode
    counts: Counts
    request_time_ms: RequestTimeMs
    release: ReleaseNumber
    deadline_ns: DeadlineNs


@dataclass
class Generated:
    """Output of `generate`: the kept embeddings that have a non-zero allocation, by outcome, in generation order.

    `allocation` [K] items to fetch, `outcome` [K] outcome index, `step` [K] 0 = prefill, `target_offset` [K] 1-based,
    `num_generated` embeddings before compression, `num_kept` after it.
    """

    embeddings: Embeddings
    allocation: PerEmbedding
    outcome: PerEmbedding
    step: PerEmbedding
    target_offset: PerEmbedding
    num_generated: Count
    num_kept: Count


@dataclass
class RetrieveInput:
    """Input of `retrieve`."""

    embeddings: Embeddings
    allocation: PerEmbedding
    outcome: PerEmbedding
    counts: Counts
    surface: SurfaceCode
    exclude_item_ids: ExcludeItemIds
    seen_item_ids: SeenItemIds
    include_seen: IncludeSeen
    release: ReleaseNumber
    deadline_ns: DeadlineNs
    remaining_ms: RemainingMs


@dataclass
class Candidates:
    """Output of `retrieve`: outcomes interleaved by share, score descending inside an outcome.

    `candidate_outcomes` [N] outcome index; `source` [N] the row of `Generated.embeddings` that found the item, -1 for
    an item filled from the release's popular lists (its score is 0).
    """

    candidate_ids: CandidateIds
    scores: Scores
    candidate_outcomes: PerCandidate
    source: PerCandidate


M = TypeVar("M")


@cache
def tensor_fields(message: type[Any]) -> dict[str, tuple[Any, Tensor]]:
    """Field name -> its Python type and its tensor, of those fields of a message that travel as one."""
    hints = get_type_hints(message, include_extras=True)
    annotated = {f.name: get_args(hints[f.name]) for f in fields(message)}
    return {name: (args[0], args[1]) for name, args in annotated.items() if args}


def gather(message: type[M], *sources: Any) -> M:
    """Build `message` from the like-named tensors of `sources`: what the ensemble's wiring does between stages."""
    return message(**{name: _field(name, sources) for name in tensor_fields(message)})  # type: ignore[arg-type]


def _field(name: str, sources: tuple[Any, ...]) -> Any:
    for source in sources:
        if hasattr(source, name):
            return getattr(source, name)
    raise AttributeError(f"no source has field {name!r}")
