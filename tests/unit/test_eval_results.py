"""Per-user results: their averages by hand, their buckets, their file."""

from dataclasses import fields, replace

import numpy as np
import pytest

from pinrec_core.errors import InvalidData
from pinrec_core.eval.results import UserResults

RESULTS = UserResults(
    user_ids=np.array([7, 8, 9]),
    any_hit=np.array([1, 0, 1], np.float32),
    target_share=np.array([0.5, 0, 1], np.float32),
    num_targets=np.array([2, 2, 1]),
    unique_within=np.array([1, 0.5, 0.9], np.float32),
    surface=np.array([1, 2, 1], np.int32),
    history_length=np.array([4, 5, 60]),
    target_user=np.array([0, 0, 1, 1, 2]),
    target_outcome=np.array([0, 1, 1, 1, 0], np.int32),
    target_hit=np.array([True, False, False, False, True]),
    target_frequency=np.array([0, 3, 0, 100, 19]),
    surfaces=("home", "related", "search"),
    outcomes=("save", "click"),
    num_retrieved=20,
    num_distinct=5,
    corpus_size=50,
    target_surface=np.array([1, 0, 2, 2, 1], np.int32),
)


def test_summary_by_hand():
    assert RESULTS.summary() == pytest.approx(
        {
            "users": 3,
            "unordered_recall": 2 / 3,
            "target_recall": 0.5,
            "proportion_unique": 5 / 20,
            "unique_within_user": 0.8,
            "coverage": 5 / 50,
            "unordered_recall/home": 1.0,
            "unordered_recall/related": 0.0,
            "target_recall/save": 1.0,
            "target_recall/click": 0.0,
            "unordered_recall/history=0-4": 1.0,
            "unordered_recall/history=5-19": 0.0,
            "unordered_recall/history=50+": 1.0,
            "target_recall/item_count=0": 0.5,
            "target_recall/item_count=1-4": 0.0,
            "target_recall/item_count=5-19": 1.0,
            "target_recall/item_count=100+": 0.0,
        }
    )


def test_unknown_training_counts_make_no_bucket():
    unknown = replace(RESULTS, target_frequency=np.full(5, -1))
    assert not unknown.by_frequency()


def test_shares_weighted_by_numbers_are_the_recall_over_targets():
    share, number = RESULTS.per_user(RESULTS.by_outcome()["click"])
    assert share.tolist() == [0, 0, 0]
    assert number.tolist() == [1, 2, 0]
    share, number = RESULTS.per_user(np.ones(5, dtype=bool))
    assert share.tolist() == [0.5, 0, 1]
    assert (share * number).sum() / number.sum() == pytest.approx(RESULTS.target_hit.mean())


def test_a_file_brings_back_what_was_saved(tmp_path):
    RESULTS.save(tmp_path / "results.npz")
    loaded = UserResults.load(tmp_path / "results.npz")
    for field in fields(UserResults):
        before, after = getattr(RESULTS, field.name), getattr(loaded, field.name)
        assert np.array_equal(before, after), field.name
        assert type(before) is type(after)
        assert getattr(before, "dtype", None) == getattr(after, "dtype", None)


def test_a_surfaces_own_targets_are_what_counts_there():
    surfaces = RESULTS.by_target_surface()
    assert list(surfaces) == ["home", "related"]
    hit, has = RESULTS.any_hit_of(surfaces["home"])
    assert (hit.tolist(), has.tolist()) == ([True, False, True], [True, False, True])
    hit, has = RESULTS.any_hit_of(surfaces["related"])
    assert (hit.tolist(), has.tolist()) == ([False, False, False], [False, True, False])


def test_a_file_without_the_targets_surfaces_is_read(tmp_path):
    RESULTS.save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as stored:
        np.savez(tmp_path / "old.npz", **{name: stored[name] for name in stored if name != "target_surface"})
    assert UserResults.load(tmp_path / "old.npz").by_target_surface() == {}


def test_results_without_surfaces_are_saved_too(tmp_path):
    replace(RESULTS, surfaces=()).save(tmp_path / "results.npz")
    assert UserResults.load(tmp_path / "results.npz").surfaces == ()


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", user_ids=np.arange(3))
    with pytest.raises(InvalidData, match=r"other\.npz lacks \['any_hit'"):
        UserResults.load(tmp_path / "other.npz")
