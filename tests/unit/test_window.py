import itertools

import pytest
import torch

from pinrec_core.train.window import match_one_to_one, pick_targets

NEVER = -torch.inf


def match(worth, group):
    return match_one_to_one(torch.tensor(worth), torch.tensor(group)).tolist()


def test_the_best_pair_comes_first_and_no_target_is_taken_twice():
    # Both rows like target 0 best. Row 1 likes it more, so row 0 goes to the one that is left.
    assert match([[0.8, 0.1], [0.9, 0.7]], [0, 0]) == [1, 0]


def test_groups_do_not_see_each_other():
    assert match([[0.8, 0.1], [0.9, 0.7], [0.9, 0.2]], [3, 3, 8]) == [1, 0, 0]


def test_what_is_masked_is_never_taken():
    assert match([[NEVER, 0.1, 0.2], [NEVER, 0.3, 0.9]], [0, 0]) == [1, 2]


def test_no_rows():
    assert match_one_to_one(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_agrees_with_a_plain_greedy_loop():
    torch.manual_seed(0)
    sizes = [1, 3, 2, 4, 4, 1]
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    worth = torch.rand(len(group), 4)
    for row, size in enumerate(torch.tensor(sizes)[group].tolist()):
        worth[row, size:] = NEVER
    found = match_one_to_one(worth, group)
    for number, size in enumerate(sizes):
        rows = torch.nonzero(group == number)[:, 0].tolist()
        rows_left, targets_left = set(rows), set(range(size))
        while rows_left:
            pairs = itertools.product(sorted(rows_left), sorted(targets_left))
            row, target = max(pairs, key=lambda pair: float(worth[pair]))
            assert int(found[row]) == target
            rows_left.remove(row)
            targets_left.remove(target)


@pytest.mark.parametrize(("how", "expected"), [("similarity", [0, 0]), ("loss", [1, 1]), ("one_to_one", [0, 1])])
def test_three_ways_to_pick(how, expected):
    # Cosines with targets 0 and 1: row 0 has 1 and .6, row 1 has .8 and 0; target 1 is much rarer.
    predicted = torch.tensor([[1.0, 0.0], [0.8, -0.6]])
    candidates = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    targets, mask = torch.tensor([[0, 1], [0, 1]]), torch.ones(2, 2, dtype=torch.bool)
    group, log_q = torch.zeros(2, dtype=torch.int64), torch.tensor([0.0, -9.0])
    picked = pick_targets(predicted, candidates, targets, mask, log_q, torch.tensor(2.0), how, group)
    assert picked.tolist() == expected


def test_one_to_one_without_groups_is_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="matches within groups"):
        pick_targets(one, one, torch.zeros(1, 1, dtype=torch.int64), one.bool(), one[0], one[0, 0], "one_to_one")
