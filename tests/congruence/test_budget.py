"""A budget changes counts, never an outcome's own embeddings (design: branches share only the prefix)."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pinrec_core.messages import CandidateRequest, EmbedItemsInput, FetchSignalsInput, GenerateInput, gather
from pinrec_core.recommend import Stages

HOME, SEARCH = 1, 3
SUBSETS = [subset for size in (1, 2, 3, 4) for subset in combinations(range(4), size)]


@pytest.fixture(scope="module")
def stages(trained) -> Stages:
    return Stages.open(trained.release(1), trained.batch_view)


@pytest.fixture(scope="module")
def requests(trained, stages) -> list[GenerateInput]:
    """A short and a full history, a cold start and a search, as `generate` gets them."""
    made = []
    for user, surface, query in ((3, HOME, ""), (10, HOME, ""), (-1, HOME, ""), (10, SEARCH, "tin kites")):
        now_ms = trained.dataset.watermark_ms + 1_000
        request = CandidateRequest(
            user, surface, np.zeros(4, np.int32), query, np.empty(0, np.int64), False, now_ms, 1, 60_000
        )
        (signals,) = stages.fetch_signals.run([gather(FetchSignalsInput, request)])
        (id_embs,) = stages.embed_items.run([gather(EmbedItemsInput, request, signals)])
        made.append(gather(GenerateInput, request, signals, id_embs))
    return made


def test_an_outcomes_embeddings_do_not_depend_on_the_others(requests, stages):
    roll_out = stages.generate.roll_out
    alone = np.concatenate([roll_out(requests, [np.array([outcome])] * 4) for outcome in range(4)], axis=1)
    assert alone.shape[:3] == (4, 4, 8)  # requests, outcomes, embeddings
    assert np.abs(alone[:, :, None] - alone[:, None]).max(axis=(-1, -2))[:, ~np.eye(4, dtype=bool)].min() > 1e-2
    for subset in SUBSETS:
        together = roll_out(requests, [np.array(subset)] * 4)
        np.testing.assert_allclose(together, alone[:, subset], rtol=0, atol=1e-5)


def test_requests_of_a_batch_with_other_outcomes_do_not_matter(requests, stages):
    subsets = [np.array(subset) for subset in ((2,), (0, 1, 2, 3), (1, 3), (0,))]
    together = stages.generate.roll_out(requests, subsets)
    for row, (request, subset) in enumerate(zip(requests, subsets, strict=True)):
        (single,) = stages.generate.roll_out([request], [subset])
        np.testing.assert_allclose(together[row, : len(subset)], single, rtol=0, atol=1e-5)


def test_under_two_budgets_what_is_kept_of_an_outcome_is_the_same(requests, stages):
    """With places for all, every kept embedding is searched: the same ones, each with its share of the count."""
    budgets = np.array([[40, 40, 40, 40], [80, 0, 200, 40]], np.int32)
    for request in requests:
        first, second = stages.generate.run([replace(request, counts=counts) for counts in budgets])
        for outcome in (0, 2, 3):
            one, other = (np.flatnonzero(generated.outcome == outcome) for generated in (first, second))
            np.testing.assert_allclose(first.embeddings[one], second.embeddings[other], rtol=0, atol=1e-5)
            for name in ("step", "target_offset"):
                np.testing.assert_array_equal(getattr(first, name)[one], getattr(second, name)[other])
            assert (first.allocation[one].sum(), second.allocation[other].sum()) == tuple(budgets[:, outcome])
        assert not (second.outcome == 1).any()
