"""Requests that only ask whether somebody is there: a canary through all stages, and a ping of one."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.messages import CandidateRequest
from pinrec_core.release import Release
from pinrec_core.release.golden import CANARY_USER_ID
from pinrec_core.serving.contract import NUMPY_OF, StageContract

_LONG_AGO_NS = 1


def canary_request(release: Release, remaining_ms: int) -> CandidateRequest:
    """One candidate for a user that no log holds: every stage works for it, as little as it can."""
    counts = np.zeros(len(release.vocabulary.outcomes), dtype=np.int32)
    counts[0] = 1
    return CandidateRequest(
        user_id=CANARY_USER_ID,
        surface=1,
        counts=counts,
        search_query="",
        exclude_item_ids=np.empty(0, dtype=np.int64),
        include_seen=True,
        request_time_ms=int(time.time() * 1000),
        release=release.number,
        remaining_ms=remaining_ms,
    )


def ping_tensors(stage: StageContract) -> dict[str, NDArray[Any]]:
    """Inputs of a request whose deadline has passed, by name, with the batch axis.

    A stage that lives answers DeadlineExceeded at once, whichever releases it holds: nothing is looked up or computed.
    """
    tensors: dict[str, NDArray[Any]] = {
        spec.name: np.zeros([1] * (1 + len(spec.shape)), dtype=NUMPY_OF[spec.dtype]) for spec in stage.inputs
    }
    if "deadline_ns" in tensors:
        tensors["deadline_ns"][:] = _LONG_AGO_NS
    return tensors
