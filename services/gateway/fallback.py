"""An answer without the stages: the release's popular lists, split over the outcomes as the budget says."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pinrec_core.errors import InvalidRelease
from pinrec_core.messages import CandidateRequest, Status
from pinrec_core.release import Release
from pinrec_core.retrieve.placement import FILLED, Placed, arrange, fill
from services.gateway.reply import PathOutput

PADDING = -1
"""At the end of a short popular list."""


class PopularAnswers:
    """For one release. Lists are read into memory, since a disk may be what has failed.

    What only the stages know is not taken into account: what the user has seen, and items deleted since the export.
    """

    def __init__(self, release: Release) -> None:
        """Raises InvalidRelease if the lists do not fit the release."""
        popular = release.popular
        lists = (len(release.vocabulary.surfaces) + 1, len(release.vocabulary.outcomes))
        if popular.ndim != 3 or popular.shape[:2] != lists or popular.dtype != np.int64:
            raise InvalidRelease(f"popular: {popular.dtype} {list(popular.shape)}; allowed: int64 {[*lists, 'P']}")
        overall = popular[0].tolist()
        self._lists = [
            [
                [item for item in dict.fromkeys(own + overall[outcome]) if item != PADDING]
                for outcome, own in enumerate(row)
            ]
            for row in popular.tolist()
        ]

    def answer(self, request: CandidateRequest) -> PathOutput:
        """As the stages would answer if retrieval had found nothing."""
        counts = request.counts.tolist()
        popular = self._lists[request.surface]
        placed = fill([], counts, popular, request.exclude_item_ids.tolist())
        left = [[item.item_id for item in placed if item.outcome == outcome] for outcome in range(len(counts))]
        outcomes = interleaved(tuple(map(len, left)))
        rest = [iter(ids) for ids in left]
        nothing = np.empty(0, dtype=np.int32)
        return PathOutput(
            candidate_ids=np.array([next(rest[outcome]) for outcome in outcomes], dtype=np.int64),
            scores=np.zeros(len(outcomes), dtype=np.float32),
            candidate_outcomes=np.array(outcomes, dtype=np.int32),
            source=np.full(len(outcomes), FILLED, dtype=np.int32),
            step=nothing,
            target_offset=nothing,
            num_generated=0,
            num_kept=0,
            history_length=0,
            realtime_events=0,
            status=int(Status.STAGES_UNAVAILABLE),
        )


def _joined(own: list[int], overall: list[int]) -> list[int]:
    """Items of a surface's list, then those of all surfaces, each once."""
    return [item for item in dict.fromkeys(own + overall) if item != PADDING]


@lru_cache(maxsize=256)
def interleaved(counts: tuple[int, ...]) -> tuple[int, ...]:
    """Outcome of each place of an answer with so many items of each: the order that the retrieve stage uses."""
    items = [Placed(0, outcome, FILLED, 0, 0.0) for outcome, count in enumerate(counts) for _ in range(count)]
    return tuple(item.outcome for item in arrange(items))
