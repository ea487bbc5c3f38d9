"""Sampled softmax over in-batch and random negatives, and its windowed form (paper, section 4.3, Eq. 2 and 5).

Pure functions of tensors. Letters: R rows (positions with what they are conditioned on), W window, C candidates (the
batch's distinct targets and the random negatives together), D embedding.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pinrec_core.train.window import WindowPick, pick_targets

_EXCLUDED = -1e30
"""Logit of a candidate that is no negative of a row; finite, so that a row without any negative has zero gradients."""

_MAX_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits held at a time, R x C (64 MiB, 1 GiB): above it rows go in chunks whose logits are computed again backward."""


def candidate_log_q(frequency: NDArray[np.float64], num_draws: int, random_share: float) -> NDArray[np.float32]:
    """log of the probability that an item is among a batch's candidates: [C] -> float32 [C].

    frequency: Q(i), an item's share of the targets (from the count-min sketch); num_draws: targets in the batch (0
    without in-batch negatives); random_share: random negatives / corpus, drawn without replacement. Candidates are the
    union of both, each item once, so an item is in with probability 1 - (1 - Q)^n (1 - r): one correction, coherent for
    the mixture. It tends to log(n Q) for rare items, which is the paper's log Q up to a constant, and to 0 when the
    random negatives are the whole corpus, where the loss is the full softmax.
    """
    with np.errstate(divide="ignore"):
        log_missed = num_draws * np.log1p(-np.minimum(frequency, 1.0)) + np.log1p(-random_share)
        log_q: NDArray[np.float32] = np.log(-np.expm1(log_missed)).astype(np.float32)
    return log_q


def sampled_softmax_loss(
    predicted: Tensor,
    candidates: Tensor,
    targets: Tensor,
    mask: Tensor,
    log_q: Tensor,
    negative: Tensor,
    logit_scale: Tensor,
    window_pick: WindowPick = "similarity",
    group: Tensor | None = None,
) -> Tensor:
    """Eq. 2 for the target that each row is given out of its window (Eq. 5): [R].

    predicted [R, D] and candidates [C, D], L2-normalized; targets int64 [R, W]: columns of `candidates`, valid where
    mask (bool [R, W]; at least one a row); log_q [C] is subtracted from every scaled similarity; negative bool [C]:
    whether a candidate serves as a negative. Accidental hits, negatives equal to any target of the row, are left out.
    `window_pick` and `group`: see `window.pick_targets`.
    """
    with torch.no_grad():
        picked = pick_targets(predicted, candidates, targets, mask, log_q, logit_scale, window_pick, group)
    own = targets.gather(1, picked[:, None])  # [R, 1]
    bias = torch.where(negative, -log_q, torch.full_like(log_q, _EXCLUDED))
    step = max(1, _MAX_LOGITS[predicted.device.type] // max(1, len(candidates)))
    if len(predicted) <= step:
        return _rows_loss(predicted, own, targets, mask, candidates, log_q, bias, logit_scale)
    losses = [
        checkpoint(
            _rows_loss, *rows, candidates=candidates, log_q=log_q, bias=bias, logit_scale=logit_scale,
            use_reentrant=False, preserve_rng_state=False,
        )
        for rows in zip(predicted.split(step), own.split(step), targets.split(step), mask.split(step), strict=True)
    ]  # fmt: skip
    return torch.cat(losses)


def _rows_loss(
    predicted: Tensor,
    own: Tensor,
    targets: Tensor,
    mask: Tensor,
    candidates: Tensor,
    log_q: Tensor,
    bias: Tensor,
    logit_scale: Tensor,
) -> Tensor:
    """The loss of some rows with targets `own` [R, 1]; `bias` [C] is -log_q, or `_EXCLUDED` for what is no negative."""
    scaled = logit_scale * predicted
    similarity = torch.einsum("rd,rwd->rw", scaled, candidates[own])  # [R, 1], lambda included
    logits = torch.addmm(bias, scaled, candidates.T)  # [R, C]
    row, column = mask.nonzero(as_tuple=True)
    logits[row, targets[row, column]] = _EXCLUDED
    rest = torch.logsumexp(logits, dim=1, keepdim=True)  # [R, 1]
    return F.softplus(rest - (similarity - log_q[own])).squeeze(1)  # -log(e^s / (e^s + sum of e^s_n))
