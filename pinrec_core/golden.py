"""Golden requests of a release, answered by the in-process path: what the serving stack must give back.

Every surface is asked for each outcome alone and for equal shares of all; a surface that takes search queries also with
some; and each surface once more without the better half of what it gave, which sees to the filters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pinrec_core.generate.budget import allocate
from pinrec_core.recommend import Stages, recommend
from pinrec_core.release import Release, read_release
from pinrec_core.release.golden import GoldenRequest, write_golden

NUM_CANDIDATES = 50
"""Candidates of each golden request, at most a tenth of the items: enough that one more or less is two percent."""

NUM_QUERIES = 3

_BATCH = 32
_NO_DEADLINE_MS = 3_600_000


def add_golden(folder: Path, titles: Mapping[int, str], request_time_ms: int) -> None:
    """Answer and write the golden requests of a release folder that is otherwise finished but has no manifest yet.

    `titles` by item id: those of popular pins are the search queries.
    """
    release = read_release(folder, 0, {})
    known = [titles[item] for item in release.popular[0, 0].tolist() if titles.get(item)]
    write_golden(folder, golden_requests(release, known[:NUM_QUERIES], request_time_ms))


def golden_requests(release: Release, queries: Sequence[str], request_time_ms: int) -> list[GoldenRequest]:
    """The golden requests of a release, with the items that it answers here and now.

    `queries` are for surfaces that take search queries; `request_time_ms` is what all of them say the time is.
    """
    stages = Stages.open(release)
    plain = _answered(list(_plain(release, queries, request_time_ms)), stages, release.number)
    filtered = [
        replace(request, exclude_item_ids=request.expected_item_ids[: len(request.expected_item_ids) // 2])
        for request in plain
        if not request.search_query and sum(count > 0 for count in request.counts) == len(request.counts)
    ]
    return _with_next(plain + _answered(filtered, stages, release.number), stages, release.number)


def _plain(release: Release, queries: Sequence[str], request_time_ms: int) -> Iterator[GoldenRequest]:
    vocabulary = release.vocabulary
    num_outcomes = len(vocabulary.outcomes)
    total = min(NUM_CANDIDATES, release.config.serve.max_candidates, max(1, len(release.items.ids) // 10))
    alone = {tuple(row) for row in (total * np.eye(num_outcomes, dtype=np.int64)).tolist()}
    equal = tuple(allocate(np.full(num_outcomes, 1 / num_outcomes), total).tolist())
    for surface in vocabulary.surfaces:
        code = vocabulary.surface_code(surface)
        for counts in sorted({*alone, equal}):
            yield GoldenRequest(code, counts, "", (), request_time_ms)
        for query in queries if surface in vocabulary.search_surfaces else ():
            yield GoldenRequest(code, equal, query, (), request_time_ms)


def _with_next(requests: Sequence[GoldenRequest], stages: Stages, release: int) -> list[GoldenRequest]:
    """Each request with what it brings once everything expected is excluded, as if deleted."""
    without = [replace(one, exclude_item_ids=one.exclude_item_ids + one.expected_item_ids) for one in requests]
    return [
        replace(one, next_item_ids=answer.expected_item_ids)
        for one, answer in zip(requests, _answered(without, stages, release), strict=True)
    ]


def _answered(requests: Sequence[GoldenRequest], stages: Stages, release: int) -> list[GoldenRequest]:
    answered = []
    for start in range(0, len(requests), _BATCH):
        batch = requests[start : start + _BATCH]
        made = recommend([request.to_request(release, _NO_DEADLINE_MS) for request in batch], stages)
        for request, answer in zip(batch, made, strict=True):
            ids = tuple(answer.candidates.candidate_ids.tolist())
            answered.append(replace(request, expected_item_ids=ids))
    return answered
