"""What the stack is asked while its speed is measured, and what of its answers counts."""

from __future__ import annotations

from typing import Any

from pinrec_core.messages import CandidateRequest
from pinrec_core.release import Release
from services.gateway.resolve import resolve
from services.gateway.triton_client import EnsembleAnswer
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse

NUM_CANDIDATES = 300
SAVE_SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)
"""Of the budget; clicks get the rest, so that every request has two branches."""
SURFACES = ("home", "related")
NAIVE_URL = "/candidates"
"""Where the naive service answers."""
RECORDED = 256
"""Requests whose messages between the stages are kept."""
_STRIDE = 7_919
"""Neighbours in time are not neighbours in the batch view."""
_NO_DEADLINE_MS = 3_600_000


def user_of(number: int, users: int) -> int:
    """Who asks in call i."""
    return 1 + number * _STRIDE % users


def request_of(number: int, users: int) -> GetCandidatesRequest:
    """Call i as a ranking service makes it."""
    share = SAVE_SHARES[number % len(SAVE_SHARES)]
    return GetCandidatesRequest(
        user_id=user_of(number, users),
        surface=SURFACES[number % len(SURFACES)],
        budget={"save": share, "click": 1 - share},
        num_candidates=NUM_CANDIDATES,
    )


def resolved(number: int, users: int, release: Release) -> CandidateRequest:
    """Call i as the gateway would hand it on, without a deadline, at the release's watermark."""
    watermark_ms = release.manifest["watermark_ms"]
    return resolve(request_of(number, users), release, "r", watermark_ms, _NO_DEADLINE_MS)


def is_full(answer: GetCandidatesResponse | EnsembleAnswer | bool) -> bool:
    """Whether an answer has all candidates, from all stages; the naive service's caller has looked itself."""
    if isinstance(answer, GetCandidatesResponse):
        return not answer.degraded and len(answer.candidates) == NUM_CANDIDATES
    if isinstance(answer, EnsembleAnswer):
        return len(answer.output.candidate_ids) == NUM_CANDIDATES
    return answer


def stage_ms(answer: Any) -> dict[str, float]:
    """What each stage says that it took for a request's batch, in milliseconds."""
    if isinstance(answer, EnsembleAnswer):
        return {stage: us / 1000 for stage, us in answer.stage_us.items()}
    own = ("triton", "gateway", "total")
    return {stage: ms for stage, ms in answer.stage_latency_ms.items() if stage not in own}
