"""Answers without the stages, from popular lists worked by hand."""

import numpy as np
import pytest

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease
from pinrec_core.messages import CandidateRequest, Status
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary
from services.gateway.fallback import PopularAnswers

VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"))
POPULAR = [  # [surface, outcome, place]: surface 0 = all
    [[1, 2, 3, 4], [5, 1, 6, 7]],
    [[2, 8, -1, -1], [1, 9, -1, -1]],
    [[-1, -1, -1, -1], [-1, -1, -1, -1]],
]


def release_of(tmp_path, popular=POPULAR):
    (tmp_path / "popular").mkdir()
    np.save(tmp_path / "popular" / "ids.npy", np.array(popular, dtype=np.int64))
    return Release(tmp_path, 3, {}, Config(), VOCABULARY)


def request_of(counts, surface=1, excluded=()):
    excluded = np.array(excluded, dtype=np.int64)
    return CandidateRequest(1, surface, np.array(counts, dtype=np.int32), "", excluded, False, 0, 3, 100)


def pairs(output):
    return list(zip(output.candidate_ids.tolist(), output.candidate_outcomes.tolist(), strict=True))


@pytest.fixture
def answers(tmp_path):
    return PopularAnswers(release_of(tmp_path))


def test_the_surfaces_list_comes_first_then_that_of_all_and_no_item_twice(answers):
    output = answers.answer(request_of([3, 3]))
    # save takes 2 8 1 before click, which is left with 9 5 6: equal counts are taken in outcome order.
    assert pairs(output) == [(2, 0), (9, 1), (8, 0), (5, 1), (1, 0), (6, 1)]
    assert Status(output.status) is Status.STAGES_UNAVAILABLE
    assert set(output.source.tolist()) == {-1}
    assert not output.scores.any()


def test_the_larger_share_is_served_first_and_interleaved_by_share(answers):
    assert pairs(answers.answer(request_of([1, 3]))) == [(1, 1), (9, 1), (2, 0), (5, 1)]


def test_excluded_items_are_left_out(answers):
    assert pairs(answers.answer(request_of([2, 0], excluded=[2, 1]))) == [(8, 0), (3, 0)]


def test_lists_that_end_make_a_short_answer(answers):
    assert pairs(answers.answer(request_of([9, 0], surface=2))) == [(1, 0), (2, 0), (3, 0), (4, 0)]


def test_lists_that_do_not_fit_the_release_are_refused(tmp_path):
    with pytest.raises(InvalidRelease, match=r"popular: int64 \[2, 2, 4\]; allowed: int64 \[3, 2, 'P'\]"):
        PopularAnswers(release_of(tmp_path, POPULAR[:2]))
