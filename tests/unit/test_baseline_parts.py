"""Parts of the baselines, worked by hand: losses, runs, neighbours, semantic ids and beam search."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse

from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.baselines.base import Sequences, pad
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.item_knn import similarities
from pinrec_core.eval.baselines.next_item import sampled_loss
from pinrec_core.eval.baselines.sasrec import SASRecModel
from pinrec_core.eval.baselines.semantic_ids import Trie, residual_codes, tell_apart
from pinrec_core.eval.baselines.tiger import TigerModel
from pinrec_core.eval.baselines.trainer import BestWeights, cut_runs, rate, shuffled_batches
from pinrec_core.eval.baselines.two_tower import TwoTowerModel

SMALL = BaselineConfig(dim=8, num_layers=1, num_heads=2, max_history=6, dropout=0.0, num_negatives=4)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epochs": 0}, "baseline epochs has value 0; allowed: at least 1"),
        ({"dim": 9, "num_heads": 2}, "baseline dim has value 9; allowed: a multiple of num_heads"),
        ({"codes": 100}, "baseline codes has value 100; allowed: a power of two"),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(values, words):
    with pytest.raises(InvalidConfig, match=words):
        BaselineConfig(**values)


def test_sampled_loss_by_hand():
    """Row 0: own 2, negatives 1 and 0. Row 1: own 1, its target is drawn as a negative and left out, the other is 3."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    own = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    negatives = torch.tensor([[1.0, 3.0], [0.0, 1.0]])
    loss = sampled_loss(queries, own, torch.tensor([7, 5]), negatives, drawn=torch.tensor([4, 5]))
    rows = [-math.log(math.e**2 / (math.e**2 + math.e + 1)), -math.log(math.e / (math.e + math.e**3))]
    assert float(loss) == pytest.approx(sum(rows) / 2, rel=1e-6)


def test_with_all_items_as_negatives_the_loss_is_the_full_cross_entropy():
    torch.manual_seed(0)
    model = SASRecModel(SMALL, num_items=9)
    columns, lengths = torch.tensor([[3, 1, 4, 1], [5, 2, 0, 0]]), torch.tensor([4, 2])
    every = torch.arange(9)
    real = torch.tensor([[True, True, True], [True, False, False]])
    queries, targets = model.queries(columns[:, :-1], lengths - 1)[real], columns[:, 1:][real]
    vectors = model.item_vectors(every)
    expected = sampled_loss(queries, vectors[targets], targets, vectors, every)
    model.num_negatives = 0
    torch.testing.assert_close(model.loss(columns, lengths, torch.Generator()), expected)


def test_padding_and_the_number_of_negatives_matter_as_they_should():
    torch.manual_seed(0)
    model = SASRecModel(SMALL, num_items=9)
    run, padded = torch.tensor([[3, 1, 4]]), torch.tensor([[3, 1, 4, 0, 0]])
    losses = [model.loss(each, torch.tensor([3]), torch.Generator().manual_seed(1)) for each in (run, padded)]
    torch.testing.assert_close(*losses)
    model.num_negatives = 8
    assert model.loss(run, torch.tensor([3]), torch.Generator().manual_seed(1)) > losses[0]


@pytest.mark.parametrize("block", ["gpt2", "hstu"])
def test_sasrec_is_causal_and_reads_the_order(block):
    torch.manual_seed(0)
    model = SASRecModel(SMALL, 9, block).eval()
    torch.nn.init.normal_(model.items.weight)
    with torch.no_grad():
        runs, length = ([1, 2, 3], [1, 2, 8], [2, 1, 3]), torch.tensor([3])
        first, changed, swapped = (model.queries(torch.tensor([run]), length) for run in runs)
    torch.testing.assert_close(changed[:, :2], first[:, :2])
    assert not torch.allclose(changed[:, 2], first[:, 2], atol=1e-4)
    assert not torch.allclose(swapped[:, 2], first[:, 2], atol=1e-6)


def test_sasrec_counts_positions_back_from_the_end():
    model = SASRecModel(replace(SMALL, max_history=5), 9)
    asked = []
    model.decoder.positions.register_forward_pre_hook(lambda _, args: asked.append(args[0]))
    model.queries(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([3, 1]))
    assert asked[0][0].tolist() == [2, 3, 4]
    assert asked[0][1, 0] == 4


def test_the_two_towers_forget_the_order_and_use_content():
    torch.manual_seed(0)
    content = torch.randn(9, 3)
    model = TwoTowerModel(SMALL, content).eval()
    with torch.no_grad():
        first, swapped = (model.queries(torch.tensor([run]), torch.tensor([3])) for run in ([1, 2, 3], [2, 1, 3]))
        items = model.item_vectors(torch.arange(9))
        model.content += 1.0
        moved = model.item_vectors(torch.arange(9))
    torch.testing.assert_close(swapped[:, 1:], first[:, 1:])
    assert not torch.allclose(swapped[:, 0], first[:, 0], atol=1e-3)
    torch.testing.assert_close(items.norm(dim=1), torch.ones(9))
    assert not torch.allclose(moved, items, atol=1e-3)


def test_long_sequences_are_cut_into_runs_that_overlap_by_one():
    sequences = Sequences(np.arange(13), np.array([0, 7, 8, 8, 13]))
    runs = [run.tolist() for run in cut_runs(sequences, longest=3)]
    assert runs == [[4, 5, 6], [2, 3, 4], [0, 1, 2], [10, 11, 12], [8, 9, 10]]
    pairs = {pair for run in runs for pair in pairwise(run)}
    assert len(pairs) == 6 + 4  # every event but each user's first is a target, once


def test_batches_hold_every_run_once_in_another_order_each_epoch():
    runs = [np.arange(length) for length in (2, 5, 3, 2, 4, 6, 2)]
    epochs = [list(shuffled_batches(runs, 3, np.random.default_rng([0, epoch]))) for epoch in range(2)]
    for batches in epochs:
        assert sorted(len(run) for batch in batches for run in batch) == [2, 2, 2, 3, 4, 5, 6]
        assert all(len(batch) <= 3 for batch in batches)
    first, second = ([len(run) for batch in batches for run in batch] for batches in epochs)
    assert first != second


def test_the_learning_rate_warms_up_and_comes_down():
    assert [rate(step, 100) for step in (0, 4)] == [0.2, 1.0]
    assert rate(52, 100) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert rate(99, 100) == pytest.approx(0.05, abs=1e-3)


def test_rows_are_padded_and_an_empty_one_has_length_0():
    columns, lengths = pad([np.array([4, 5]), np.array([], np.int64)])
    assert columns.tolist() == [[4, 5], [0, 0]]
    assert lengths.tolist() == [2, 0]


def test_neighbours_by_hand():
    """Items a, b, c, d of users {a b}, {a b c}, {c}, {d}: cosines ab 1, ac = bc = 1 / 2; d has none."""
    engaged = sparse.csr_matrix(np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float32))
    plain = similarities(engaged, neighbours=3, shrinkage=0.0).toarray()
    assert plain == pytest.approx(np.array([[0, 1, 0.5, 0], [1, 0, 0.5, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]))
    shrunk = similarities(engaged, neighbours=1, shrinkage=2.0).toarray()
    assert shrunk == pytest.approx(np.array([[0, 0.5, 0, 0], [0.5, 0, 0, 0], [0.25, 0, 0, 0], [0, 0, 0, 0]]))


def test_best_weights_by_validation():
    model = torch.nn.Linear(1, 1, bias=False)
    values = iter([0.2, 0.5, 0.4, 0.5])
    best = BestWeights(model, lambda: next(values), patience=2)
    stops = []
    for weight in (1.0, 2.0, 3.0, 4.0):
        torch.nn.init.constant_(model.weight, weight)
        stops.append(best.look())
    assert stops == [False, False, False, True]
    best.restore()
    assert float(model.weight.detach()) == 2.0
    assert best.best == 0.5


def test_items_with_the_same_codes_are_told_apart():
    codes = np.array([[1, 0], [2, 3], [1, 0], [1, 0], [2, 3], [0, 0]])
    assert tell_apart(codes)[:, 2].tolist() == [0, 0, 1, 2, 1, 0]
    assert tell_apart(codes)[:, :2].tolist() == codes.tolist()


def test_codes_go_from_coarse_to_fine():
    """Four far groups of four near ones: the first code tells the groups apart, the second most of what is within."""
    group, near = np.divmod(np.arange(16).repeat(10), 4)
    noise = 0.01 * np.random.default_rng(0).normal(size=(160, 8))
    vectors = 10 * np.eye(8)[group] + np.eye(8)[4 + near] + noise
    codes = residual_codes(vectors.astype(np.float32), codebooks=2, codes=4).reshape(16, 10, 2)
    assert [len(np.unique(codes[4 * g : 4 * g + 4, :, 0])) for g in range(4)] == [1, 1, 1, 1]
    assert len(np.unique(codes[:, 0, 0])) == 4
    assert len(np.unique(codes[:, 0], axis=0)) >= 12


def test_the_trie_leads_to_every_item_and_nowhere_else():
    codes = np.array([[1, 0, 0], [0, 2, 0], [1, 0, 1], [1, 1, 0]])
    trie = Trie.of(codes)
    assert trie.sizes() == [2, 3, 2]
    reached = {}
    for path in np.ndindex(2, 3, 2):
        node = 0
        for level, code in enumerate(path):
            node = int(trie.children[level][node, code]) if node >= 0 else -1
        if node >= 0:
            reached[path] = node
    assert reached == {tuple(row): column for column, row in enumerate(codes.tolist())}


@torch.no_grad()
def test_beam_search_finds_what_scoring_every_item_finds():
    """With as many beams as items nothing is lost; probabilities of all items sum to 1."""
    torch.manual_seed(0)
    codes = tell_apart(np.random.default_rng(0).integers(0, 3, (12, 2)))
    model = TigerModel(SMALL, codes).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    states = torch.randn(2, 8)
    found, likely = model.search(states, beams=12)
    for user in range(2):
        expected = torch.tensor([log_probability(model, states[user], codes, item) for item in range(12)])
        assert float(expected.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        assert found[user].tolist() == expected.argsort(descending=True).tolist()
        torch.testing.assert_close(likely[user], expected.sort(descending=True).values, atol=1e-4, rtol=0)
    narrow, _ = model.search(states, beams=1)
    assert narrow.shape == (2, 1)
    more, likely = model.search(states, beams=40)
    assert (more == -1).equal(likely == -torch.inf)
    assert (more >= 0).sum(dim=1).tolist() == [12, 12]


def log_probability(model, state, codes, item):
    """Of one item's codes, each among the codes that follow the ones before it in any item."""
    total = 0.0
    for level in range(codes.shape[1]):
        before = codes[item, :level]
        alike = codes[(codes[:, :level] == before).all(axis=1), level]
        hidden = model.spell(state[None], torch.from_numpy(before)[None])[0, -1]
        logits = model.logits[level](hidden)
        total += float(logits[codes[item, level]] - logits[np.unique(alike)].logsumexp(dim=0))
    return total


def test_tigers_loss_falls_to_the_codes_it_is_shown():
    torch.manual_seed(0)
    model = TigerModel(SMALL, tell_apart(np.random.default_rng(0).integers(0, 3, (12, 2))))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    columns, lengths = torch.tensor([[3, 7, 1, 9]]), torch.tensor([4])
    losses = []
    for _ in range(60):
        loss = model.loss(columns, lengths, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 < losses[0]
    model.eval()
    with torch.no_grad():
        found, _ = model.search(model.states(columns[:, :3])[:, -1], beams=3)
    assert found[0, 0] == 9
