"""The stack answers what `pinrec_core.recommend` answers: the same ids, outcomes and order.

The ensemble is asked directly where both sides must share a request time, since the gateway stamps its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from pinrec_core.data.synthetic import FIRST_ITEM_ID
from pinrec_core.generate.budget import allocate, normalize
from pinrec_core.messages import CandidateRequest, EmbedItemsInput, GenerateInput, Status, gather
from pinrec_core.recommend import Recommendation, recommend
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.text_encoder import query_item_id
from services.gateway.reply import PathOutput
from services.gateway.resolve import resolve
from services.gateway.triton_client import Ensemble
from services.proto.candidates_pb2 import GetCandidatesRequest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

FLAT, IVF_HNSW = 1, 2
HOME, RELATED, SEARCH = 1, 2, 3
PATIENT_S = 60.0
CLOSE = 1e-4
"""How near two scores, or a cosine and the compression threshold, must be for rounding to decide between them."""


def asked(user_id: int, now_ms: int, **changes) -> CandidateRequest:
    base = CandidateRequest(
        user_id=user_id,
        surface=HOME,
        counts=np.array([4, 10, 3, 13], np.int32),
        search_query="",
        exclude_item_ids=np.empty(0, np.int64),
        include_seen=False,
        request_time_ms=now_ms,
        release=FLAT,
        remaining_ms=int(PATIENT_S * 1000),
    )
    return replace(base, **changes)


def counts(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def items(first: int, last: int) -> np.ndarray:
    return np.arange(FIRST_ITEM_ID + first, FIRST_ITEM_ID + last, dtype=np.int64)


CASES = {
    "a user of the log": {"user_id": 3},
    "on another surface": {"user_id": 3, "surface": RELATED},
    "seen items too": {"user_id": 3, "include_seen": True},
    "most items excluded": {"user_id": 4, "exclude_item_ids": items(40, 300)},
    "an excluded item that nobody knows": {"user_id": 4, "exclude_item_ids": counts(-5, 7).astype(np.int64)},
    "a search query of the log": {"user_id": 5, "surface": SEARCH, "search_query": "best mossy lantern"},
    "a search query never seen": {"user_id": 5, "surface": SEARCH, "search_query": "Ωmega  crème brûlée, 2 kg"},
    "a search query without words": {"user_id": 5, "surface": SEARCH, "search_query": " \t "},
    "cold start": {"user_id": -(2**62)},
    "cold start with a search query": {"user_id": 2**63 - 1, "surface": SEARCH, "search_query": "lantern"},
    "only the first outcome": {"user_id": 6, "counts": counts(20, 0, 0, 0)},
    "only the last outcome": {"user_id": 6, "counts": counts(0, 0, 0, 20)},
    "zeros between": {"user_id": 6, "counts": counts(9, 0, 0, 11)},
    "one candidate": {"user_id": 7, "counts": counts(0, 1, 0, 0)},
    "nothing at all": {"user_id": 7, "counts": counts(0, 0, 0, 0)},
    "more than there is": {"user_id": 8, "counts": counts(100, 100, 100, 100)},
}

NEW_EVENTS = {
    "clicks and saves": lambda user, now: [
        pin(user, 3 * place, now - 60_000 * place, action=("save", "click")[place % 2]) for place in range(1, 8)
    ],
    "more than a history holds": lambda user, now: [pin(user, place, now - 1_000 * place) for place in range(40)],
    "the same event twice": lambda user, now: [pin(user, 9, now - 5, event_id=77), pin(user, 9, now - 5, event_id=77)],
    "a search": lambda user, now: [searched(user, "brass owls", now - 9_000), pin(user, 11, now - 8_000)],
    "words of another vocabulary": lambda user, now: [pin(user, 12, now - 10, action="poke", surface="attic")],
    "an item that the release lacks": lambda user, now: [pin(user, 10**6, now - 10), pin(user, 13, now - 9)],
    "times ahead of the request": lambda user, now: [pin(user, 14, now + 3_600_000)],
}


def pin(user_id: int, item: int, timestamp_ms: int, **changes) -> Event:
    event = Event(user_id, FIRST_ITEM_ID + item, ItemType.PIN, "save", "home", timestamp_ms)
    return event._replace(**changes)


def searched(user_id: int, text: str, timestamp_ms: int) -> Event:
    return Event(user_id, query_item_id(text), ItemType.SEARCH_QUERY, "search", "search", timestamp_ms, text=text)


@pytest.fixture(scope="module")
def now_ms(trained) -> int:
    return trained.dataset.watermark_ms + 3_600_000


@pytest.fixture(scope="module")
def stages(live):
    """Both releases, opened in this process over the events that the stack holds."""
    return {number: live.stages(number) for number in (FLAT, IVF_HNSW)}


@asynccontextmanager
async def ensemble_of(live) -> AsyncIterator[Ensemble]:
    ensemble = Ensemble(live.triton)
    try:
        yield ensemble
    finally:
        await ensemble.close()


async def answer_of(ensemble: Ensemble, request: CandidateRequest) -> PathOutput:
    answer = await ensemble.infer(request, PATIENT_S, request_id="congruence")
    assert set(answer.stage_releases.values()) == {request.release}
    return answer.output


def assert_same(answer: PathOutput, expected: Recommendation) -> None:
    for part, names in (
        (expected.candidates, ("candidate_ids", "candidate_outcomes", "source")),
        (expected.generated, ("step", "target_offset", "num_generated", "num_kept")),
        (expected.signals, ("history_length", "realtime_events", "status")),
    ):
        for name in names:
            np.testing.assert_array_equal(getattr(answer, name), getattr(part, name), err_msg=name)
    np.testing.assert_allclose(answer.scores, expected.candidates.scores, rtol=0, atol=1e-5)


@pytest.mark.parametrize("release", [FLAT, IVF_HNSW])
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
async def test_one_request_is_answered_as_in_one_process(live, stages, now_ms, changes, release):
    request = asked(now_ms=now_ms, release=release, **changes)
    (expected,) = recommend([request], stages[release])
    async with ensemble_of(live) as ensemble:
        assert_same(await answer_of(ensemble, request), expected)


@pytest.mark.parametrize("of_the_log", [True, False])
@pytest.mark.parametrize("events", NEW_EVENTS.values(), ids=NEW_EVENTS)
async def test_new_events_are_seen_alike(live, stages, now_ms, events, of_the_log):
    user = live.log_user() if of_the_log else live.new_user()
    live.append(events(user, now_ms))
    for changes in ({}, {"surface": SEARCH, "search_query": "tin kites"}, {"include_seen": True}):
        request = asked(user, now_ms, **changes)
        (expected,) = recommend([request], stages[FLAT])
        assert expected.signals.realtime_events > 0
        assert Status.COLD_START not in Status(expected.signals.status)
        async with ensemble_of(live) as ensemble:
            assert_same(await answer_of(ensemble, request), expected)


def drawn(number: int, now_ms: int, seed: int) -> list[CandidateRequest]:
    """Random requests of users of the log and of strangers, under random budgets."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(number):
        surface = int(rng.integers(HOME, SEARCH + 1))
        weights = rng.random(4) * (rng.random(4) < 0.7) + [0, 0.01, 0, 0]
        changes = {
            "surface": surface,
            "counts": allocate(normalize(weights), int(rng.integers(1, 101))).astype(np.int32),
            "search_query": f"thing {rng.integers(100)}" if surface == SEARCH and rng.random() < 0.7 else "",
            "exclude_item_ids": FIRST_ITEM_ID + rng.choice(300, int(rng.integers(0, 60)), replace=False),
            "include_seen": bool(rng.random() < 0.3),
            "request_time_ms": now_ms + int(rng.integers(0, 86_400_000)),
            "release": int(rng.integers(FLAT, IVF_HNSW + 1)),
        }
        requests.append(asked(int(rng.integers(1, 221)), now_ms, **changes))
    return requests


async def test_one_after_another_is_the_same_as_in_one_process(live, stages, now_ms):
    async with ensemble_of(live) as ensemble:
        for request in drawn(120, now_ms, seed=0):
            (expected,) = recommend([request], stages[request.release])
            assert_same(await answer_of(ensemble, request), expected)


async def test_batched_differs_only_where_rounding_decides(live, stages, now_ms):
    requests = drawn(64, now_ms, seed=1)
    async with ensemble_of(live) as ensemble:
        answers = await asyncio.gather(*(answer_of(ensemble, request) for request in requests))
    alone = [recommend([request], stages[request.release])[0] for request in requests]
    assert_near(requests, [(a.candidate_ids, a.candidate_outcomes, a.scores) for a in answers], alone, stages)


def test_a_batch_in_one_process_is_the_same_as_its_requests_alone(trained, stages, now_ms):
    requests = [replace(request, release=FLAT) for request in drawn(64, now_ms, seed=2)]
    together = [each.candidates for each in recommend(requests, stages[FLAT])]
    alone = [recommend([request], stages[FLAT])[0] for request in requests]
    assert_near(requests, [(a.candidate_ids, a.candidate_outcomes, a.scores) for a in together], alone, stages)


def assert_near(requests, answers, alone, stages) -> None:
    """Overlap of at least 99 %; what differs has scores, or its request a cosine, that rounding decides about."""
    shared = wanted = 0
    for request, (ids, outcomes, scores), expected in zip(requests, answers, alone, strict=True):
        single = expected.candidates
        shared += len(np.intersect1d(ids, single.candidate_ids))
        wanted += len(single.candidate_ids)
        np.testing.assert_array_equal(outcomes, single.candidate_outcomes)
        if not np.array_equal(ids, single.candidate_ids):
            gaps = np.abs(scores - single.scores)[ids != single.candidate_ids]
            assert gaps.max() <= CLOSE or distance_to_threshold(request, expected, stages) <= CLOSE
    assert shared >= 0.99 * wanted > 0


def distance_to_threshold(request: CandidateRequest, expected: Recommendation, stages) -> float:
    """How near a cosine of two embeddings of one outcome comes to the compression threshold."""
    opened = stages[request.release]
    (id_embs,) = opened.embed_items.run([gather(EmbedItemsInput, request, expected.signals)])
    one = gather(GenerateInput, request, expected.signals, id_embs)
    (embeddings,) = opened.generate.roll_out([one], [np.flatnonzero(request.counts)])  # [A, M, D]
    threshold = opened.fetch_signals.release.config.generate.compression_threshold
    return float(np.abs(embeddings @ embeddings.transpose(0, 2, 1) - threshold).min())


def test_the_gateway_answers_what_the_path_in_one_process_answers(live, stages):
    """The gateway stamps a time between the call and its return; in one of these milliseconds both agree."""
    release = live.trained.release(FLAT)
    for user, surface, query, budget in (
        (9, "home", "", {"save": 0.7, "click": 0.3}),
        (live.new_user(), "home", "", {"share": 1.0, "click": 1.0, "comment": 0.5}),
        (10, "search", "Rusty kettles", {"save": 1.0}),
    ):
        request = GetCandidatesRequest(
            user_id=user, surface=surface, budget=budget, num_candidates=40, search_query=query, request_id="r"
        )
        before = int(time.time() * 1000)
        reply = live.candidates.GetCandidates(request, timeout=PATIENT_S)
        after = int(time.time() * 1000)
        got = [(c.item_id, release.vocabulary.outcomes.index(c.outcome), c.filled) for c in reply.candidates]
        assert len(got) == 40
        assert any(
            got == in_process(resolve(request, release, "r", at, 1_000), stages[FLAT])
            for at in range(before, after + 1)
        )


def in_process(request: CandidateRequest, stages) -> list[tuple[int, int, bool]]:
    (answer,) = recommend([request], stages)
    found = answer.candidates
    rows = zip(found.candidate_ids.tolist(), found.candidate_outcomes.tolist(), found.source.tolist(), strict=True)
    return [(item_id, outcome, source < 0) for item_id, outcome, source in rows]
