"""Sampled softmax over in-batch and random negatives, and its windowed form (paper, section 4.3, Eq. 2 and 5).

Pure functions of tensors. Letters: R rows (valid position-offset pairs), W window, C candidates (the batch's distinct
targets and the random negatives together), D embedding.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
    window_pick: Literal["similarity", "loss"] = "similarity",
) -> Tensor:
    """Eq. 2 for each row's best target of its window (Eq. 5's min): [R].

    predicted [R, D] and candidates [C, D], L2-normalized; targets int64 [R, W]: columns of `candidates`, valid where
    mask (bool [R, W]; at least one a row); log_q [C] is subtracted from every scaled similarity; negative bool [C]:
    whether a candidate serves as a negative. Accidental hits, negatives equal to any target of the row, are left out.
    `window_pick`: "similarity" lets the plain similarity choose the target whose corrected loss is trained; with "loss"
    the smallest corrected loss counts, which favours the window's rarest item, since its correction is largest.
    """
    bias = torch.where(negative, -log_q, torch.full_like(log_q, _EXCLUDED))
    step = max(1, _MAX_LOGITS[predicted.device.type] // max(1, len(candidates)))
    if len(predicted) <= step:
        return _rows_loss(predicted, targets, mask, candidates, log_q, bias, logit_scale, window_pick)
    losses = [
        checkpoint(
            _rows_loss, *rows, candidates=candidates, log_q=log_q, bias=bias, logit_scale=logit_scale,
            window_pick=window_pick, use_reentrant=False, preserve_rng_state=False,
        )
        for rows in zip(predicted.split(step), targets.split(step), mask.split(step), strict=True)
    ]  # fmt: skip
    return torch.cat(losses)


def _rows_loss(
    predicted: Tensor,
    targets: Tensor,
    mask: Tensor,
    candidates: Tensor,
    log_q: Tensor,
    bias: Tensor,
    logit_scale: Tensor,
    window_pick: str,
) -> Tensor:
    """The loss of some rows; `bias` [C] is -log_q, or `_EXCLUDED` for what is no negative."""
    scaled = logit_scale * predicted
    similarity = torch.einsum("rd,rwd->rw", scaled, candidates[targets])  # [R, W], lambda included
    logits = torch.addmm(bias, scaled, candidates.T)  # [R, C]
    row, column = mask.nonzero(as_tuple=True)
    logits[row, targets[row, column]] = _EXCLUDED
    rest = torch.logsumexp(logits, dim=1, keepdim=True)  # [R, 1]
    losses = F.softplus(rest - (similarity - log_q[targets]))  # -log(e^s / (e^s + sum of e^s_n)), [R, W]
    worth = similarity if window_pick == "similarity" else -losses
    best = worth.detach().masked_fill(~mask, -torch.inf).argmax(dim=1, keepdim=True)
    return losses.gather(1, best).squeeze(1)
