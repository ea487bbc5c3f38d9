import math

import numpy as np
import pytest
import torch

from pinrec_core.train import loss as loss_module
from pinrec_core.train.loss import candidate_log_q, sampled_softmax_loss

DOUBLE = torch.float64


def vectors(*rows):
    return torch.tensor(rows, dtype=DOUBLE)


def softmax_loss(predicted, candidates, targets, mask=None, log_q=None, negative=None, scale=2.0, pick="similarity"):
    targets = torch.tensor(targets)
    num = len(candidates)
    return sampled_softmax_loss(
        predicted,
        candidates,
        targets,
        torch.ones_like(targets, dtype=torch.bool) if mask is None else torch.tensor(mask),
        torch.zeros(num, dtype=DOUBLE) if log_q is None else torch.tensor(log_q, dtype=DOUBLE),
        torch.ones(num, dtype=torch.bool) if negative is None else torch.tensor(negative),
        torch.tensor(scale, dtype=DOUBLE),
        pick,
    )


def cross_entropy(target, *negatives):
    return -math.log(math.exp(target) / (math.exp(target) + sum(math.exp(n) for n in negatives)))


def random_case(rows=5, window=3, num=7, dim=4, seed=0):
    torch.manual_seed(seed)
    predicted = torch.nn.functional.normalize(torch.randn(rows, dim, dtype=DOUBLE), dim=1)
    candidates = torch.nn.functional.normalize(torch.randn(num, dim, dtype=DOUBLE), dim=1)
    targets = torch.stack([torch.randperm(num)[:window] for _ in range(rows)])
    mask = torch.rand(rows, window) < 0.7
    mask[:, 0] = True
    log_q = torch.log(torch.rand(num, dtype=DOUBLE))
    return predicted, candidates, targets, mask, log_q


def test_one_target_two_negatives_by_hand():
    predicted = vectors([1.0, 0.0])
    candidates = vectors([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0])  # similarities 1, 0, -1; times 2
    found = softmax_loss(predicted, candidates, [[0]])
    assert found.tolist() == pytest.approx([cross_entropy(2.0, 0.0, -2.0)])


def test_log_q_is_subtracted_from_target_and_negatives():
    predicted, candidates = vectors([1.0, 0.0]), vectors([1.0, 0.0], [0.0, 1.0])
    found = softmax_loss(predicted, candidates, [[0]], log_q=[-1.0, -3.0])
    assert found.tolist() == pytest.approx([cross_entropy(2.0 + 1.0, 0.0 + 3.0)])


def test_accidental_hits_are_left_out():
    # Two targets in the window: the second is not a negative of the first.
    predicted, candidates = vectors([1.0, 0.0]), vectors([1.0, 0.0], [0.6, 0.8], [0.0, 1.0])
    found = softmax_loss(predicted, candidates, [[0, 1]])
    assert found.tolist() == pytest.approx([cross_entropy(2.0, 0.0)])


def test_a_masked_target_is_an_ordinary_negative():
    predicted, candidates = vectors([1.0, 0.0]), vectors([0.6, 0.8], [1.0, 0.0], [0.0, 1.0])
    found = softmax_loss(predicted, candidates, [[0, 1]], mask=[[True, False]])
    assert found.tolist() == pytest.approx([cross_entropy(1.2, 2.0, 0.0)])


def test_candidates_that_are_no_negatives_are_not_in_the_sum():
    predicted, candidates = vectors([1.0, 0.0]), vectors([1.0, 0.0], [0.6, 0.8], [0.0, 1.0])
    found = softmax_loss(predicted, candidates, [[0]], negative=[False, False, True])
    assert found.tolist() == pytest.approx([cross_entropy(2.0, 0.0)])


def test_window_pick_similarity_ignores_the_correction_and_loss_does_not():
    # Target 0 is nearer (s = 2), target 1 is rarer (log_q -4): corrected scores 2 + 0 and 1.2 + 4.
    predicted, candidates = vectors([1.0, 0.0]), vectors([1.0, 0.0], [0.6, 0.8], [0.0, 1.0])
    log_q = [0.0, -4.0, 0.0]
    by_similarity = softmax_loss(predicted, candidates, [[0, 1]], log_q=log_q, pick="similarity")
    by_loss = softmax_loss(predicted, candidates, [[0, 1]], log_q=log_q, pick="loss")
    assert by_similarity.tolist() == pytest.approx([cross_entropy(2.0, 0.0)])
    assert by_loss.tolist() == pytest.approx([cross_entropy(5.2, 0.0)])


def test_masked_targets_are_never_picked():
    predicted, candidates = vectors([1.0, 0.0]), vectors([0.0, 1.0], [1.0, 0.0])
    for pick in ("similarity", "loss"):
        found = softmax_loss(predicted, candidates, [[0, 1]], mask=[[True, False]], pick=pick)
        assert found.tolist() == pytest.approx([cross_entropy(0.0, 2.0)])


def test_min_over_the_window_equals_the_smallest_single_loss():
    predicted, candidates, targets, mask, log_q = random_case()
    negative = torch.ones(len(candidates), dtype=torch.bool)
    found = sampled_softmax_loss(predicted, candidates, targets, mask, log_q, negative, torch.tensor(3.0), "loss")
    for row in range(len(predicted)):
        scores = 3.0 * candidates @ predicted[row] - log_q
        hits = targets[row][mask[row]].tolist()
        others = [float(s) for i, s in enumerate(scores) if i not in hits]
        assert float(found[row]) == pytest.approx(min(cross_entropy(float(scores[h]), *others) for h in hits))


def test_gradients_agree_with_finite_differences():
    predicted, candidates, targets, mask, log_q = random_case(rows=3, window=2, num=5, dim=3)
    negative = torch.tensor([True, True, False, True, True])
    scale = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True)

    def total(p, c, s):
        return sampled_softmax_loss(p, c, targets, mask, log_q, negative, s).sum()

    torch.autograd.gradcheck(total, (predicted.requires_grad_(), candidates.requires_grad_(), scale))


def test_rows_in_chunks_give_the_same_losses_and_gradients(monkeypatch):
    results = []
    for limit in (1 << 24, 14):
        monkeypatch.setitem(loss_module._MAX_LOGITS, "cpu", limit)
        predicted, candidates, targets, mask, log_q = random_case(rows=9)
        predicted.requires_grad_()
        candidates.requires_grad_()
        negative = torch.ones(len(candidates), dtype=torch.bool)
        losses = sampled_softmax_loss(predicted, candidates, targets, mask, log_q, negative, torch.tensor(3.0))
        losses.mean().backward()
        results.append((losses.detach(), predicted.grad, candidates.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked)


def test_a_row_without_negatives_has_no_loss_and_no_gradient():
    predicted = vectors([0.6, 0.8]).requires_grad_()
    found = softmax_loss(predicted, vectors([1.0, 0.0]), [[0]])
    found.sum().backward()
    assert found.tolist() == [0.0]
    assert predicted.grad.tolist() == [[0.0, 0.0]]


def test_candidate_log_q_by_hand():
    found = candidate_log_q(np.array([0.5, 0.0]), num_draws=2, random_share=0.2)
    # missed by both draws .25, by the random negatives .8; an item that is never a target is only drawn at random
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.exp(found), [1 - 0.25 * 0.8, 0.2], rtol=1e-6)


def test_candidate_log_q_follows_log_frequency_for_rare_items_and_vanishes_for_the_full_softmax():
    rare = np.array([1e-7, 4e-7])
    np.testing.assert_allclose(candidate_log_q(rare, 100, 0.0), np.log(100 * rare), rtol=1e-4)
    assert candidate_log_q(np.array([0.3, 0.0]), 10, 1.0).tolist() == [0.0, 0.0]


def test_corrected_candidates_estimate_the_full_partition_function():
    rng = np.random.default_rng(0)
    num_items, draws, num_random = 60, 25, 6
    weights = 1.0 / np.arange(1, num_items + 1)
    frequency = weights / weights.sum()
    scores = rng.normal(size=num_items)
    log_q = candidate_log_q(frequency, draws, num_random / num_items)
    estimates = []
    for _ in range(4000):
        in_batch = rng.choice(num_items, size=draws, p=frequency)
        at_random = rng.choice(num_items, size=num_random, replace=False)
        union = np.union1d(in_batch, at_random)
        estimates.append(np.exp(scores[union] - log_q[union]).sum())
    assert np.mean(estimates) == pytest.approx(np.exp(scores).sum(), rel=0.02)


def learn_popularity(corrected):
    """Scores of 30 items learned from popularity alone: one free bias an item, negatives in batch."""
    rng = np.random.default_rng(0)
    popularity = 1.0 / np.arange(1, 31)
    popularity /= popularity.sum()
    scores = torch.zeros(30, requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.03)
    total, steps = torch.zeros(30), 800
    for step in range(steps):
        union, columns = np.unique(rng.choice(30, size=12, p=popularity), return_inverse=True)
        log_q = candidate_log_q(popularity[union], 12, 0.0) if corrected else np.zeros(len(union), dtype=np.float32)
        losses = sampled_softmax_loss(
            scores.expand(12, -1),
            torch.eye(30)[union],
            torch.from_numpy(columns)[:, None],
            torch.ones(12, 1, dtype=torch.bool),
            torch.from_numpy(log_q),
            torch.ones(len(union), dtype=torch.bool),
            torch.tensor(1.0),
        )
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        total += scores.detach() * (step >= steps // 2)
    return (total / (steps // 2)).numpy(), np.log(popularity)


def test_with_log_q_the_learned_scores_are_log_popularity():
    scores, log_popularity = learn_popularity(corrected=True)
    slope = np.polyfit(log_popularity, scores, 1)[0]
    assert np.corrcoef(scores, log_popularity)[0, 1] > 0.95
    assert slope == pytest.approx(1.0, abs=0.2)


def test_without_log_q_popular_items_are_pushed_down_by_being_negatives_more_often():
    scores, log_popularity = learn_popularity(corrected=False)
    assert np.polyfit(log_popularity, scores, 1)[0] < 0.5
