"""Sampled softmax over in-batch and random negatives, and its windowed form (paper, section 4.3, Eq. 2 and 5).

Pure functions of tensors. Letters: R rows (positions with what they are conditioned on), W window, C candidates (the
batch's distinct targets and the random negatives together), N those of them that are negatives, D embedding.
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
"""Logit of a row's own targets among the negatives; finite, so that a row without any other has zero gradients."""

_MAX_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Logits held at a time, R x N (64 MiB, 1 GiB): above it rows go in chunks whose logits are computed again backward."""


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
    # Only negatives get logits: a column that is masked for every row costs as much as one that counts.
    columns = negative.nonzero().squeeze(1)  # [N]
    among = (negative.cumsum(0) - 1)[targets]  # [R, W], columns of targets among the negatives
    accidental = mask & negative[targets]  # [R, W]
    rows = (logit_scale * predicted, candidates[own.squeeze(1)], log_q[own.squeeze(1)], among, accidental)
    negatives, bias = candidates[columns], -log_q[columns]  # [N, D], [N]
    step = max(1, _MAX_LOGITS[predicted.device.type] // max(1, len(columns)))
    if len(predicted) <= step:
        return _rows_loss(*rows, negatives, bias)
    losses = [
        checkpoint(_rows_loss, *chunk, negatives, bias, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(*(row.split(step) for row in rows), strict=True)
    ]
    return torch.cat(losses)


def _rows_loss(
    scaled: Tensor,
    own: Tensor,
    own_log_q: Tensor,
    among: Tensor,
    accidental: Tensor,
    negatives: Tensor,
    bias: Tensor,
) -> Tensor:
    """The loss of some rows, [R]: scaled = lambda x predicted and own = the rows' targets [R, D], own_log_q [R].

    among int64 [R, W]: columns of negatives [N, D] that are no negatives of the row, where `accidental`; bias [N].
    """
    similarity = (scaled * own).sum(dim=1)  # [R], lambda included
    logits = torch.addmm(bias, scaled, negatives.T)  # [R, N]
    row, place = accidental.nonzero(as_tuple=True)
    logits[row, among[row, place]] = _EXCLUDED
    rest = torch.logsumexp(logits, dim=1)  # [R]
    return F.softplus(rest - (similarity - own_log_q))  # -log(e^s / (e^s + sum of e^s_n))
