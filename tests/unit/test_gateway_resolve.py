"""Each field of a request: what is allowed passes in codes, what is not is named with its value and what is allowed."""

from pathlib import Path

import numpy as np
import pytest

from pinrec_core.config import config_from_dict
from pinrec_core.errors import InvalidRequest
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary
from services.gateway.resolve import resolve
from services.proto.candidates_pb2 import GetCandidatesRequest

VOCABULARY = Vocabulary(
    positive_actions=("save", "click", "view"),
    actions=("view", "click", "save", "search"),
    surfaces=("home", "search"),
    search_surfaces=("search",),
)


def release(vocabulary=VOCABULARY, **serve):
    return Release(Path("releases/3"), 3, {}, config_from_dict({"serve": serve}), vocabulary)


def ask(**changes):
    fields = {"user_id": 5, "surface": "home", "budget": {"save": 1.0}, "num_candidates": 10}
    return GetCandidatesRequest(**{**fields, **changes})


def resolved(request, **serve):
    return resolve(request, release(**serve), "r1", request_time_ms=1_700_000_000_000, remaining_ms=80)


def test_names_become_codes_of_the_release():
    request = ask(user_id=-7, surface="search", search_query=" cats ", exclude_item_ids=[9, 2, 9], include_seen=True)
    made = resolved(request)
    assert (made.user_id, made.surface, made.search_query, made.include_seen) == (-7, 2, "cats", True)
    assert made.exclude_item_ids.tolist() == [2, 9]
    assert made.exclude_item_ids.dtype == np.int64
    assert (made.request_time_ms, made.release, made.remaining_ms) == (1_700_000_000_000, 3, 80)


@pytest.mark.parametrize(
    ("budget", "count", "counts"),
    [
        ({"save": 0.7, "click": 0.3}, 10, [7, 3, 0]),
        ({"view": 5, "click": 15}, 10, [0, 8, 2]),  # quotas 2.5 and 7.5: the tie goes to the larger share
        ({"save": 1, "click": 1, "view": 1}, 10, [4, 3, 3]),  # equal shares: outcome order
        ({"save": 0.57, "click": 0.43}, 50, [29, 21, 0]),  # 28.5 and 21.5, although no float32 is 0.57
        ({"save": 3e38, "click": 3e38}, 4, [2, 2, 0]),
        ({"save": 1e-30, "click": 0.0}, 4, [4, 0, 0]),
    ],
)
def test_budget_becomes_largest_remainder_counts_in_outcome_order(budget, count, counts):
    made = resolved(ask(budget=budget, num_candidates=count))
    assert made.counts.tolist() == counts
    assert made.counts.dtype == np.int32


def test_stochastic_counts_are_seeded_by_the_request_id():
    stochastic = release(allocation="stochastic")
    request = ask(budget={"save": 1, "click": 1}, num_candidates=100)

    def counts(request_id):
        return tuple(resolve(request, stochastic, request_id, 0, 80).counts.tolist())

    assert counts("a") == counts("a")
    assert len({counts(str(i)) for i in range(20)}) > 1
    assert all(sum(counts(str(i))) == 100 and counts(str(i))[2] == 0 for i in range(20))


def test_a_uc_release_has_the_one_outcome_any():
    uc = Vocabulary(("save",), ("save",), ("home",), unconditioned=True)
    made = resolve(ask(budget={"any": 2}), release(uc), "r", 0, 80)
    assert made.counts.tolist() == [10]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"surface": "nowhere"}, "surface", "surface has value 'nowhere'; allowed: one of ['home', 'search']"),
        ({"surface": ""}, "surface", "surface has value ''; allowed: one of ['home', 'search']"),
        ({"budget": {"buy": 1}}, "budget", "budget has value 'buy'; allowed: outcomes ['save', 'click', 'view']"),
        ({"budget": {"search": 1}}, "budget", "budget has value 'search'; allowed: outcomes ['save', 'click', 'view']"),
        (
            {"budget": {"save": float("nan")}},
            "budget[save]",
            "budget[save] has value nan; allowed: a finite weight, 0 or more",
        ),
        (
            {"budget": {"save": 1, "click": float("inf")}},
            "budget[click]",
            "budget[click] has value inf; allowed: a finite weight, 0 or more",
        ),
        (
            {"budget": {"save": 1, "click": -0.5}},
            "budget[click]",
            "budget[click] has value -0.5; allowed: a finite weight, 0 or more",
        ),
        (
            {"budget": {"save": 0}},
            "budget",
            "budget has value {'save': 0.0}; allowed: a weight above 0 for one of ['save', 'click', 'view']",
        ),
        (
            {"budget": {}},
            "budget",
            "budget has value {}; allowed: a weight above 0 for one of ['save', 'click', 'view']",
        ),
        ({"num_candidates": 0}, "num_candidates", "num_candidates has value 0; allowed: 1 to 1000"),
        ({"num_candidates": 1001}, "num_candidates", "num_candidates has value 1001; allowed: 1 to 1000"),
        (
            {"exclude_item_ids": range(2001)},
            "exclude_item_ids",
            "exclude_item_ids has value '2001 ids'; allowed: at most 2000 ids",
        ),
        (
            {"search_query": "cats"},
            "search_query",
            "search_query has value 'cats'; allowed: none on surface 'home'; surfaces that take one: ['search']",
        ),
        (
            {"surface": "search", "search_query": "x" * 513},
            "search_query",
            f"search_query has value '{'x' * 40}... (513 characters)'; allowed: at most 512 characters",
        ),
        (
            {"request_id": "r" * 129},
            "request_id",
            f"request_id has value '{'r' * 40}... (129 characters)'; allowed: at most 128 characters",
        ),
        ({"priority": 7}, "priority", "priority has value 7; allowed: 0 (INTERACTIVE) or 1 (BATCH)"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_allowed(changes, field, message):
    with pytest.raises(InvalidRequest) as raised:
        resolved(ask(**changes))
    assert raised.value.field == field
    assert raised.value.message == message


def test_limits_are_the_releases_own():
    assert resolved(ask(num_candidates=5), max_candidates=5).counts.sum() == 5
    with pytest.raises(InvalidRequest, match="num_candidates has value 6; allowed: 1 to 5"):
        resolved(ask(num_candidates=6), max_candidates=5)
    with pytest.raises(InvalidRequest, match="exclude_item_ids has value '2 ids'; allowed: at most 1 ids"):
        resolved(ask(exclude_item_ids=[1, 2]), max_excluded=1)


def test_blank_search_query_is_none_on_any_surface():
    assert resolved(ask(search_query="  ")).search_query == ""
