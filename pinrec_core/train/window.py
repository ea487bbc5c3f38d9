"""Which target of its window a row is trained on (paper, Eq. 5, and another reading of it).

The min of Eq. 5 lets every row choose alone. Nothing keeps the rows of a position from choosing the same target, and a
target that none is near to stays without a gradient, so embeddings of different offsets fall together. Matched one to
one, each target of the window has an embedding of its own, and each embedding a part of the window of its own.
Letters: R rows, W window, D embedding, G groups, K rows of the largest group.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

WindowPick = Literal["similarity", "loss", "one_to_one"]

_NEVER = -torch.inf
_MAX_PRODUCTS = 1 << 26
"""Products held at a time, rows x W x D (256 MiB)."""


def pick_targets(
    predicted: Tensor,
    candidates: Tensor,
    targets: Tensor,
    mask: Tensor,
    log_q: Tensor,
    logit_scale: Tensor,
    how: WindowPick,
    group: Tensor | None = None,
) -> Tensor:
    """Place in its window of each row's target: int64 [R].

    Arguments as those of `loss.sampled_softmax_loss`. "similarity": the target most similar to the row's embedding.
    "loss": the one with the smallest corrected loss, which is the largest similarity less log_q (the sum over
    negatives is the same for all targets of a row); it favours the window's rarest item, whose correction is largest.
    "one_to_one": by similarity too, but no target twice within a `group` (int64 [R], ascending; rows of a group have
    equal targets, and no more rows than targets). Raises ValueError without them.
    """
    worth = _similarity(predicted, candidates, targets)  # [R, W]
    if how == "loss":
        worth = logit_scale * worth - log_q[targets]
    worth = worth.masked_fill(~mask, _NEVER)
    if how != "one_to_one":
        return worth.argmax(dim=1)
    if group is None:
        raise ValueError("one_to_one matches within groups, and none are given")
    return match_one_to_one(worth, group)


def match_one_to_one(worth: Tensor, group: Tensor) -> Tensor:
    """Greedy matching within each group, the best pair first: place of each row's target, int64 [R].

    worth [R, W], -inf where a target may not be taken; group int64 [R], ascending.
    """
    _, index, sizes = group.unique_consecutive(return_inverse=True, return_counts=True)
    if not len(sizes):
        return group
    rank = torch.arange(len(group), device=group.device) - (sizes.cumsum(0) - sizes)[index]
    width, window = int(sizes.max()), worth.size(1)
    free = worth.new_full((len(sizes), width, window), _NEVER)  # [G, K, W]
    free[index, rank] = worth
    picked = torch.zeros(len(sizes), width, dtype=torch.int64, device=group.device)
    groups = torch.arange(len(sizes), device=group.device)
    for _ in range(width):
        value, best = free.flatten(1).max(dim=1)
        row, place = best // window, best % window
        real = value > _NEVER  # a smaller group has no rows left
        picked[groups[real], row[real]] = place[real]
        free[groups, row] = _NEVER
        free[groups, :, place] = _NEVER
    return picked[index, rank]


def _similarity(predicted: Tensor, candidates: Tensor, targets: Tensor) -> Tensor:
    """Cosine of each row with each target of its window: [R, W], a part of the rows at a time."""
    step = max(1, _MAX_PRODUCTS // max(1, targets.size(1) * predicted.size(1)))
    parts = [
        torch.einsum("rd,rwd->rw", rows, candidates[columns])
        for rows, columns in zip(predicted.split(step), targets.split(step), strict=True)
    ]
    return torch.cat(parts)
