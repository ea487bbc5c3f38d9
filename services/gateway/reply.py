"""The ensemble's answer in a client's words: codes back to names, rows to candidates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pinrec_core.messages import CandidateIds, Count, PerCandidate, PerEmbedding, Scores, Status
from pinrec_core.release import Release
from services.common.logs import note_call
from services.common.metrics import GatewayMetrics
from services.proto.candidates_pb2 import Candidate, GetCandidatesRequest, GetCandidatesResponse, Why


@dataclass
class PathOutput:
    """What the path says about one request: fields of `Signals`, `Generated` and `Candidates`, named as there."""

    candidate_ids: CandidateIds
    scores: Scores
    candidate_outcomes: PerCandidate
    source: PerCandidate
    step: PerEmbedding
    target_offset: PerEmbedding
    num_generated: Count
    num_kept: Count
    history_length: Count
    realtime_events: Count
    status: Count


DEGRADED_REASONS = {
    Status.SIGNALS_UNAVAILABLE: "signals_unavailable",
    Status.REALTIME_UNAVAILABLE: "realtime_unavailable",
    Status.STAGES_UNAVAILABLE: "stages_unavailable",
}
"""What is said of each status bit that marks an answer as degraded."""


def build_reply(
    output: PathOutput, request: GetCandidatesRequest, release: Release, request_id: str
) -> GetCandidatesResponse:
    """The response without its times, which the caller knows."""
    status = Status(output.status)
    reasons = [reason for bit, reason in DEGRADED_REASONS.items() if bit in status]
    return GetCandidatesResponse(
        candidates=_candidates(output, release.vocabulary.outcomes, request.explain),
        release=release.number,
        history_length=output.history_length,
        realtime_events=output.realtime_events,
        cold_start=Status.COLD_START in status,
        degraded=bool(reasons),
        degraded_reason=", ".join(reasons),
        request_id=request_id,
        embeddings_generated=output.num_generated,
        embeddings_kept=output.num_kept,
    )


def _candidates(output: PathOutput, outcomes: tuple[str, ...], explain: bool) -> list[Candidate]:
    rows = zip(
        output.candidate_ids.tolist(),
        output.scores.tolist(),
        output.candidate_outcomes.tolist(),
        output.source.tolist(),
        strict=True,
    )
    return [
        Candidate(
            item_id=item_id,
            score=score,
            outcome=outcomes[outcome],
            why=_why(output, source) if explain and source >= 0 else None,
            filled=source < 0,
        )
        for item_id, score, outcome, source in rows
    ]


def _why(output: PathOutput, source: int) -> Why:
    return Why(step=int(output.step[source]), target_offset=int(output.target_offset[source]), embedding_index=source)


def observe_reply(reply: GetCandidatesResponse, metrics: GatewayMetrics) -> None:
    """Count what was served: outcomes, fills, cold starts, degradation, compression, times of the stages."""
    served = Counter(candidate.outcome for candidate in reply.candidates)
    filled = Counter(candidate.outcome for candidate in reply.candidates if candidate.filled)
    for outcome, count in served.items():
        metrics.candidates.labels(outcome).inc(count)
        metrics.filled.labels(outcome).inc(filled[outcome])
    if reply.cold_start:
        metrics.cold_start.inc()
    if reply.degraded:
        metrics.degraded.labels(reply.degraded_reason).inc()
        note_call(degraded=reply.degraded_reason)
    if reply.embeddings_kept:
        metrics.compression_ratio.observe(reply.embeddings_generated / reply.embeddings_kept)
    for stage, milliseconds in reply.stage_latency_ms.items():
        if stage != "total":
            metrics.stage_seconds.labels(stage).observe(milliseconds / 1000)
