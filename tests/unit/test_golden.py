"""Golden requests: which are made, that the same release gives the same answers, and that another one does not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
from pinrec_core.golden import add_golden, golden_requests
from pinrec_core.model.pinrec import PinRec
from pinrec_core.recommend import Stages, recommend
from pinrec_core.release import open_release
from pinrec_core.release.golden import GoldenRequest, read_golden
from pinrec_core.train.export import export

CONFIG = config_from_dict(
    {
        "data": {"content_dim": 8},
        "model": {"hidden_dim": 16, "num_heads": 2, "embedding_dim": 8, "id_dim": 4, "hash_rows": 50, "hash_dim": 4},
        "retrieve": {"popular_per_list": 5},
    }
)
TIME_MS = 1_700_000_000_000


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """Two models over 300 items, three surfaces (one takes search queries), two outcomes."""
    root = tmp_path_factory.mktemp("golden")
    SyntheticWorld(SyntheticSpec(users=10, items=300, events=300)).write(root / "data")
    dataset = open_dataset(root / "data", CONFIG)
    assert len(dataset.vocabulary.outcomes) == 2
    golden = partial(add_golden, titles=dataset.titles, request_time_ms=TIME_MS)
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = PinRec(CONFIG, dataset.vocabulary, dataset.items.content.shape[1])
        made.append(open_release(root / "releases", export(model, dataset, root / "releases", add_golden=golden)))
    return made


def test_every_surface_each_outcome_alone_and_all_together_queries_and_filters(releases):
    release = releases[0]
    golden = read_golden(release)
    total = len(release.items.ids) // 10
    plain = [g for g in golden if not g.search_query and not g.exclude_item_ids]
    budgets = {(total, 0), (0, total), (total // 2, total // 2)}
    assert {(g.surface, g.counts) for g in plain} == {(surface, b) for surface in (1, 2, 3) for b in budgets}
    searches = [g for g in golden if g.search_query]
    takes_queries = release.vocabulary.surface_code(release.vocabulary.search_surfaces[0])
    assert (len({g.search_query for g in searches}), {g.surface for g in searches}) == (3, {takes_queries})
    filtered = [g for g in golden if g.exclude_item_ids]
    assert [g.surface for g in filtered] == [1, 2, 3]
    assert all(len(g.exclude_item_ids) == total // 2 for g in filtered)
    assert not any(set(g.exclude_item_ids) & set(g.expected_item_ids) for g in filtered)
    assert all(len(g.expected_item_ids) == total and g.request_time_ms == TIME_MS for g in golden)


def test_the_same_release_answers_alike_and_another_model_does_not(releases):
    first, second = releases
    golden = read_golden(first)
    queries = [g.search_query for g in golden if g.search_query]
    assert tuple(golden_requests(first, queries, TIME_MS)) == golden
    answers = recommend([g.to_request(second.number, 60_000) for g in golden], Stages.open(second))
    overlap = np.mean([g.overlap(a.candidates.candidate_ids.tolist()) for g, a in zip(golden, answers, strict=True)])
    assert overlap < 0.5


def test_overlap_is_the_share_of_the_places_that_hold_what_may_be_there():
    golden = GoldenRequest(1, (4,), "", (), TIME_MS, expected_item_ids=(1, 2, 3, 4), next_item_ids=(5, 6, 7, 8))
    assert golden.overlap([4, 3, 2, 1]) == 1.0
    assert golden.overlap([1, 2, 98, 99]) == 0.5
    assert golden.overlap([3, 4, 5, 6]) == 1.0, "1 and 2 were deleted, the next in line came up"
    assert golden.overlap([1, 2, 3, 99], newer=[99]) == 1.0, "99 was added after the release"
    assert golden.overlap([]) == 0.0


def test_what_is_next_in_line_is_what_deletions_bring_up(releases):
    for golden in read_golden(releases[0]):
        assert len(golden.next_item_ids) == len(golden.expected_item_ids)
        assert not {*golden.next_item_ids} & {*golden.expected_item_ids, *golden.exclude_item_ids}
