"""Unordered recall and uniqueness of what a set of generated embeddings retrieves (paper, section 5.1, Eq. 6).

Everything rests on one count: of the index N, how many items score at least as high as a target under an embedding.
With the target in N it counts itself, so the count is the target's rank (ties against it) and Eq. 6's `<= k` means
rank <= k; with an index that does not hold the target, the same `<= k` means rank <= k + 1. We evaluate on the whole
corpus, which holds every target.
Letters: U users, J embeddings a user, Z targets a user, N items of the index.
"""

from __future__ import annotations

import torch
from torch import Tensor


def target_hits(top_scores: Tensor, target_scores: Tensor, k: int) -> Tensor:
    """Whether each target is within the top k of each embedding: bool [U, J, Z].

    top_scores [U, J, min(k + 1, N)]: the best scores of the index, descending (-inf: dropped for that user);
    target_scores [U, J, Z]. True where |{n in N: score >= target_score}| <= k (Eq. 6), which holds exactly if the
    (k + 1)-th best score lies below the target's. A target at -inf (dropped) is never hit.
    """
    reachable = target_scores > -torch.inf
    if top_scores.size(-1) <= k:
        return reachable
    return (target_scores > top_scores[..., k : k + 1]) & reachable


def unordered_recall_at_k(hits: Tensor, valid: Tensor) -> Tensor:
    """Eq. 6's indicator for each user: 1 if any embedding has any target within its top k, float32 [U].

    hits bool [U, J, Z]; valid bool [U, Z]: which targets exist.
    """
    return (hits & valid[:, None]).flatten(1).any(dim=1).float()


def target_recall_at_k(hits: Tensor, valid: Tensor) -> Tensor:
    """The other reading, from section 5.1's text: share of a user's targets that some embedding has, float32 [U]."""
    found = (hits.any(dim=1) & valid).sum(dim=1)
    return found / valid.sum(dim=1).clamp_min(1)


def proportion_unique(retrieved: Tensor) -> float:
    """Distinct items among all retrieved: int64 [...] (any shape, -1 = none) -> share in (0, 1], 0 if nothing is.

    Over all users' lists at once it is the paper's figure; over one user's it says how much the embeddings repeat.
    """
    items = retrieved[retrieved >= 0]
    return float(items.unique().numel() / items.numel()) if items.numel() else 0.0


def unique_within_user(retrieved: Tensor) -> Tensor:
    """`proportion_unique` of each user's own lists: int64 [U, n] (-1 = none) -> float32 [U]."""
    ordered = retrieved.sort(dim=1).values
    is_new = torch.ones_like(ordered, dtype=torch.bool)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    real = ordered >= 0
    return (is_new & real).sum(dim=1) / real.sum(dim=1).clamp_min(1)
