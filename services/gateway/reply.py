"""The ensemble's answer in a client's words: codes back to names, rows to candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pinrec_core.messages import CandidateIds, Count, PerCandidate, PerEmbedding, Scores, Status
from pinrec_core.release import Release
from services.common.logs import note_call
from services.common.metrics import GatewayMetrics
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse


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
    reply = GetCandidatesResponse(
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
    _add_candidates(reply, output, release.vocabulary.outcomes, request.explain)
    return reply


def _add_candidates(reply: GetCandidatesResponse, output: PathOutput, outcomes: tuple[str, ...], explain: bool) -> None:
    """In place and field by field: a third of the time of messages that are built and then copied."""
    rows = zip(
        output.candidate_ids.tolist(),
        output.scores.tolist(),
        output.candidate_outcomes.tolist(),
        output.source.tolist(),
        strict=True,
    )
    add = reply.candidates.add
    for item_id, score, outcome, source in rows:
        candidate = add()
        candidate.item_id = item_id
        candidate.score = score
        candidate.outcome = outcomes[outcome]
        if source < 0:
            candidate.filled = True
        elif explain:
            why = candidate.why
            why.step, why.target_offset = int(output.step[source]), int(output.target_offset[source])
            why.embedding_index = source


def observe_candidates(output: PathOutput, outcomes: tuple[str, ...], metrics: GatewayMetrics) -> None:
    """Count the candidates that were served of each outcome, and those of them that filled up."""
    served = np.bincount(output.candidate_outcomes, minlength=len(outcomes)).tolist()
    filled = np.bincount(output.candidate_outcomes[output.source < 0], minlength=len(outcomes)).tolist()
    for outcome, count, fillers in zip(outcomes, served, filled, strict=True):
        if count:
            metrics.candidates.labels(outcome).inc(count)
            metrics.filled.labels(outcome).inc(fillers)


def observe_reply(reply: GetCandidatesResponse, metrics: GatewayMetrics) -> None:
    """Count cold starts and degraded answers; observe compression and the times of the stages."""
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
