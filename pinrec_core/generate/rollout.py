"""Free-running generation: prefill once a user, then one branch an outcome, all sharing the prefix's K and V.

A step emits `offsets_per_step` embeddings a branch and feeds the first (or the whole block) back with the branch's
action, the request's surface and the request's time (paper, sections 4.3 and 4.4.3; the sharing of the prefix is ours).
Letters: B batch, T history, P = T + 1 prefix slots, A branches (outcomes asked for), O offsets a step, F fed tokens a
branch and step, M = steps x O embeddings a branch, D embedding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pinrec_core.config import GenerateConfig
from pinrec_core.model.inputs import SequenceInputs, time_features
from pinrec_core.model.pinrec import PinRec


class Branches:
    """What every branch of a batch is conditioned on and carries when it is fed back.

    outcomes int64 [B, A]; actions int64 [B, A] (codes fed back); surface int64 [B]; request_time_ms int64 [B].
    """

    def __init__(self, outcomes: Tensor, actions: Tensor, surface: Tensor, request_time_ms: Tensor) -> None:
        self.outcomes = outcomes
        self.actions = actions
        self.surface = surface
        self.request_time_ms = request_time_ms


def rollout(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> Tensor:
    """Generate with a KV cache: [B, A, M, D], step-major, then offset."""
    batch, num_branches = branches.outcomes.shape
    fed = plan.num_fed
    prefix = inputs.timestamps_ms.size(1) + 1
    slots = prefix + (plan.num_steps - 1) * num_branches * fed
    cache = model.decoder.new_cache(batch, slots, like=model.start_token)
    hidden = model.hidden_states(inputs, cache)  # [B, P, width]
    last = hidden[torch.arange(batch), inputs.lengths]  # [B, width], after each user's last event
    blocks = [emit(model, last[:, None].expand(-1, num_branches, -1), branches, plan)]  # each [B, A, O, D]
    mask = branch_mask(inputs.lengths, prefix, num_branches, fed, plan.num_steps)
    for step in range(1, plan.num_steps):
        tokens, positions = feed(model, blocks[-1], branches, inputs, plan, step)  # [B, A F, width], [B, A F]
        start = prefix + (step - 1) * num_branches * fed
        visible = mask[:, :, start - prefix : start - prefix + num_branches * fed, : start + num_branches * fed]
        hidden = model.decoder(tokens, positions, visible, cache, start)
        last = hidden.view(batch, num_branches, fed, -1)[:, :, -1]  # [B, A, width]
        blocks.append(emit(model, last, branches, plan))
    return torch.cat(blocks, dim=2)


def rollout_uncached(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> Tensor:
    """The plain twin: every branch's whole sequence is run again at every step. [B, A, M, D]."""
    batch, num_branches = branches.outcomes.shape
    each = [
        _plain_branch(model, inputs, branches, plan, row, branch)  # [M, D]
        for row in range(batch)
        for branch in range(num_branches)
    ]
    return torch.stack(each).view(batch, num_branches, *each[0].shape)


def _plain_branch(
    model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig, row: int, branch: int
) -> Tensor:
    """One user, one branch, no cache, no padding: [M, D]."""
    one = _select(branches, row, branch)
    length = int(inputs.lengths[row])
    sliced = {k: v[row : row + 1, :length] for k, v in vars(inputs).items() if v is not None and v.ndim > 1}
    alone = replace(inputs, lengths=inputs.lengths[row : row + 1], **sliced)
    sequence = model.prefix_tokens(alone)  # [1, length + 1, width]
    blocks: list[Tensor] = []
    for step in range(plan.num_steps):
        if step:
            sequence = torch.cat([sequence, feed(model, blocks[-1], one, alone, plan, step)[0]], dim=1)
        hidden = model.decoder(sequence, torch.arange(sequence.size(1), device=sequence.device))
        blocks.append(emit(model, hidden[:, -1:], one, plan))  # [1, 1, O, D]
    return torch.cat(blocks, dim=2)[0, 0]


def _select(branches: Branches, row: int, branch: int) -> Branches:
    at = (slice(row, row + 1), slice(branch, branch + 1))
    return Branches(
        branches.outcomes[at], branches.actions[at], branches.surface[at[0]], branches.request_time_ms[at[0]]
    )


def emit(model: PinRec, hidden: Tensor, branches: Branches, plan: GenerateConfig) -> Tensor:
    """Hidden [B, A, width] -> the step's embeddings [B, A, O, D]."""
    offsets = torch.arange(1, plan.offsets_per_step + 1, device=hidden.device)
    return model.predict(
        hidden[:, :, None],  # [B, A, 1, width]
        branches.outcomes[:, :, None],
        offsets,
        branches.surface[:, None, None],
    )


def feed(
    model: PinRec, block: Tensor, branches: Branches, inputs: SequenceInputs, plan: GenerateConfig, step: int
) -> tuple[Tensor, Tensor]:
    """The tokens that a step's block [B, A, O, D] becomes, and their positions: [B, A F, width], int64 [B, A F]."""
    fed = plan.num_fed
    batch, num_branches = branches.outcomes.shape
    now = branches.request_time_ms[:, None].expand(-1, fed)  # [B, F]
    before = now.clone()
    if step == 1:
        before[:, 0] = inputs.last_timestamps_ms
    times = time_features(now, before)[:, None].expand(-1, num_branches, -1, -1)  # [B, A, F, features]
    tokens = model.tokens(
        block[:, :, :fed],
        branches.actions[:, :, None].expand(-1, -1, fed),
        branches.surface[:, None, None].expand(-1, num_branches, fed),
        times,
    )
    ahead = torch.arange(1, fed + 1, device=block.device) + (step - 1) * fed
    positions = (inputs.lengths[:, None] + ahead)[:, None].expand(-1, num_branches, -1)  # [B, A, F]
    return tokens.reshape(batch, num_branches * fed, -1), positions.reshape(batch, -1)


def branch_mask(lengths: Tensor, prefix: int, num_branches: int, fed: int, num_steps: int) -> Tensor:
    """Which cache slots each fed token attends to: bool [B, 1, Q, prefix + Q], Q = (num_steps - 1) x A x F.

    A token sees the valid prefix and, of its own branch, the earlier steps and the tokens up to itself.
    """
    device = lengths.device
    count = (num_steps - 1) * num_branches * fed
    token = torch.arange(count, device=device)
    branch = token // fed % num_branches
    order = token // (num_branches * fed) * fed + token % fed  # place within its branch
    own = (branch[:, None] == branch[None]) & (order[:, None] >= order[None])  # [Q, Q]
    valid = torch.arange(prefix, device=device) <= lengths[:, None]  # [B, P]
    batch = lengths.size(0)
    parts = [valid[:, None].expand(batch, count, prefix), own[None].expand(batch, count, count)]
    return torch.cat(parts, dim=-1)[:, None]
