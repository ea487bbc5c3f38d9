"""A client's words to what the stages need: every field checked, names to codes, the budget to counts. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import ServeConfig
from pinrec_core.errors import InvalidRequest
from pinrec_core.generate.budget import allocate, allocate_stochastic, normalize, seed_of
from pinrec_core.messages import CandidateRequest
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary
from services.proto.candidates_pb2 import GetCandidatesRequest

MAX_SEARCH_QUERY_CHARS = 512
MAX_REQUEST_ID_CHARS = 128
_SHOWN_CHARS = 40


def resolve(
    request: GetCandidatesRequest, release: Release, request_id: str, request_time_ms: int, remaining_ms: int
) -> CandidateRequest:
    """Check a request against the vocabulary and limits of `release` and translate it.

    Raises InvalidRequest naming the field, its value and what is allowed.
    """
    vocabulary, limits = release.vocabulary, release.config.serve
    _check_sizes(request, limits)
    return CandidateRequest(
        user_id=request.user_id,
        surface=vocabulary.request_surface_code(request.surface),
        counts=_counts(request, vocabulary, limits, request_id),
        search_query=_search_query(request, vocabulary),
        exclude_item_ids=np.unique(np.array(request.exclude_item_ids, dtype=np.int64)),
        include_seen=request.include_seen,
        request_time_ms=request_time_ms,
        release=release.number,
        remaining_ms=remaining_ms,
    )


def _check_sizes(request: GetCandidatesRequest, limits: ServeConfig) -> None:
    if not 1 <= request.num_candidates <= limits.max_candidates:
        raise InvalidRequest("num_candidates", request.num_candidates, f"1 to {limits.max_candidates}")
    if len(request.exclude_item_ids) > limits.max_excluded:
        value = f"{len(request.exclude_item_ids)} ids"
        raise InvalidRequest("exclude_item_ids", value, f"at most {limits.max_excluded} ids")
    if len(request.request_id) > MAX_REQUEST_ID_CHARS:
        value = _shown(request.request_id)
        raise InvalidRequest("request_id", value, f"at most {MAX_REQUEST_ID_CHARS} characters")
    if request.priority not in GetCandidatesRequest.Priority.values():
        raise InvalidRequest("priority", request.priority, "0 (INTERACTIVE) or 1 (BATCH)")


def _search_query(request: GetCandidatesRequest, vocabulary: Vocabulary) -> str:
    text: str = request.search_query.strip()
    if len(text) > MAX_SEARCH_QUERY_CHARS:
        raise InvalidRequest("search_query", _shown(text), f"at most {MAX_SEARCH_QUERY_CHARS} characters")
    if text and request.surface not in vocabulary.search_surfaces:
        taking = list(vocabulary.search_surfaces)
        raise InvalidRequest(
            "search_query", _shown(text), f"none on surface {request.surface!r}; surfaces that take one: {taking}"
        )
    return text


def _counts(
    request: GetCandidatesRequest, vocabulary: Vocabulary, limits: ServeConfig, request_id: str
) -> NDArray[np.int32]:
    """int32 [A]: candidates for each outcome; their sum is `num_candidates` (paper, section 4.3.1: B(a) * N)."""
    shares = normalize(_weights(request.budget, vocabulary))
    if limits.allocation == "stochastic":
        counts = allocate_stochastic(shares, request.num_candidates, seed_of(request_id))
    else:
        counts = allocate(shares, request.num_candidates)
    return counts.astype(np.int32)


def _weights(budget: Mapping[str, float], vocabulary: Vocabulary) -> NDArray[np.float64]:
    """float64 [A]: the budget in outcome order, zero for outcomes that it does not name."""
    weights = np.zeros(len(vocabulary.outcomes))
    for outcome, weight in budget.items():
        index = vocabulary.outcome_index(outcome)
        if not math.isfinite(weight) or weight < 0:
            raise InvalidRequest(f"budget[{outcome}]", weight, "a finite weight, 0 or more")
        weights[index] = float(str(np.float32(weight)))  # 0.57 arrives as 0.569999992847...: ties need what was meant
    if not weights.any():
        raise InvalidRequest("budget", dict(budget), f"a weight above 0 for one of {list(vocabulary.outcomes)}")
    return weights


def _shown(text: str) -> str:
    """Enough of a text to recognize it, so that an error never echoes a megabyte."""
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"
