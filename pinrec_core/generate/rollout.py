"""Free-running generation: prefill once a user, then one branch an outcome, all sharing the prefix's K and V.

A step emits `offsets_per_step` embeddings a branch and feeds the first (or the whole block) back with the branch's
action, the request's surface and the request's time (paper, sections 4.3 and 4.4.3; the sharing of the prefix is ours).
Letters: B batch, T history, P = T + 1 prefix slots, A branches (outcomes asked for), O offsets a step, F fed tokens a
branch and step, M = steps x O embeddings a branch, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinrec_core.config import GenerateConfig
from pinrec_core.model.inputs import SequenceInputs, time_features
from pinrec_core.model.kv_cache import KVCache
from pinrec_core.model.pinrec import PinRec


@dataclass(frozen=True)
class Branches:
    """What every branch of a batch is conditioned on and carries when it is fed back."""

    outcomes: Tensor
    """int64 [B, A]"""
    actions: Tensor
    """int64 [B, A], codes fed back"""
    surface: Tensor
    """int64 [B]"""
    request_time_ms: Tensor
    """int64 [B]"""


@dataclass(frozen=True)
class Conditions:
    """What the steps of a rollout have in common, computed once."""

    emitted: Tensor | None
    """[B, A, O, width]: Phi's share of the output head; None where Phi is empty"""
    fed: tuple[Tensor, Tensor]
    """Each [B, A, F, width]: context of the tokens fed in step 1, and in later ones"""


def rollout(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> Tensor:
    """Generate with a KV cache: [B, A, M, D], step-major, then offset."""
    cache = new_cache(model, inputs, branches, plan)
    conditions = conditions_of(model, inputs, branches, plan)
    first = prefill(model, inputs, conditions, cache)  # [B, A, O, D]
    prefix = inputs.timestamps_ms.size(1) + 1
    return torch.cat([first, *decode(model, first, inputs.lengths, conditions, plan, cache, prefix)], dim=2)


def new_cache(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> KVCache:
    """Room for the padded prefix and for every token that the steps feed back."""
    batch, num_branches = branches.outcomes.shape
    slots = inputs.timestamps_ms.size(1) + 1 + (plan.num_steps - 1) * num_branches * plan.num_fed
    return model.decoder.new_cache(batch, slots, like=model.start_token)


def conditions_of(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig) -> Conditions:
    """See `Conditions`."""
    offsets = torch.arange(1, plan.offsets_per_step + 1, device=branches.outcomes.device)
    emitted = model.output_head.condition(branches.outcomes[:, :, None], offsets, branches.surface[:, None, None])
    return Conditions(
        emitted, (fed_context(model, inputs, branches, plan, 1), fed_context(model, inputs, branches, plan, 2))
    )


def fed_context(model: PinRec, inputs: SequenceInputs, branches: Branches, plan: GenerateConfig, step: int) -> Tensor:
    """What tokens fed in `step` (1, or any later one) carry beside their embedding: [B, A, F, width]."""
    fed, num_branches = plan.num_fed, branches.outcomes.size(1)
    now = branches.request_time_ms[:, None].expand(-1, fed)  # [B, F]
    before = now.clone()
    if step == 1:
        before[:, 0] = inputs.last_timestamps_ms
    times = time_features(now, before)[:, None].expand(-1, num_branches, -1, -1)  # [B, A, F, features]
    actions = branches.actions[:, :, None].expand(-1, -1, fed)
    return model.token_context(actions, branches.surface[:, None, None].expand(-1, num_branches, fed), times)


def prefill(model: PinRec, inputs: SequenceInputs, conditions: Conditions, cache: KVCache) -> Tensor:
    """The first step's embeddings, after each user's last event: [B, A, O, D]. Fills the cache's first P slots."""
    last = model.decoder.prefill(model.prefix_tokens(inputs), inputs.lengths, cache)  # [B, width]
    num_branches = conditions.fed[0].size(1)
    return emit(model, last[:, None].expand(-1, num_branches, -1), conditions)


def decode(
    model: PinRec,
    first: Tensor,
    lengths: Tensor,
    conditions: Conditions,
    plan: GenerateConfig,
    cache: KVCache,
    prefix: int,
) -> list[Tensor]:
    """The other steps' embeddings, each [B, A, O, D]: `first` are the prefill's, `prefix` the slots that it filled."""
    batch, num_branches = first.shape[:2]
    fed = plan.num_fed
    tokens_a_step = num_branches * fed
    mask = branch_mask(lengths, prefix, num_branches, fed, plan.num_steps)
    block, blocks = first, []
    for step in range(1, plan.num_steps):
        tokens, positions = feed(model, block, lengths, conditions.fed[min(step, 2) - 1], step)
        start = (step - 1) * tokens_a_step
        visible = mask[:, :, start : start + tokens_a_step, : prefix + start + tokens_a_step]
        hidden = model.decoder(tokens, positions, visible, cache, prefix + start)
        last = hidden.view(batch, num_branches, fed, -1)[:, :, -1]  # [B, A, width]
        block = emit(model, last, conditions)
        blocks.append(block)
    return blocks


def emit(model: PinRec, hidden: Tensor, conditions: Conditions) -> Tensor:
    """Hidden [B, A, width] -> the step's embeddings [B, A, O, D]."""
    return model.output_head.given(hidden[:, :, None], conditions.emitted)


def feed(model: PinRec, block: Tensor, lengths: Tensor, context: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """The tokens that a block [B, A, O, D] becomes in `context` [B, A, F, width], and their positions.

    Tokens [B, A F, width], positions int64 [B, A F].
    """
    batch, num_branches, fed, width = context.shape
    tokens = model.item_token(block[:, :, :fed]) + context
    ahead = torch.arange(1, fed + 1, device=block.device) + (step - 1) * fed
    positions = (lengths[:, None] + ahead)[:, None].expand(-1, num_branches, -1)  # [B, A, F]
    return tokens.view(batch, -1, width), positions.reshape(batch, -1)


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
    offsets = torch.arange(1, plan.offsets_per_step + 1, device=inputs.lengths.device)
    sequence = model.prefix_tokens(alone)  # [1, length + 1, width]
    blocks: list[Tensor] = []
    for step in range(plan.num_steps):
        if step:
            context = fed_context(model, alone, one, plan, step)
            sequence = torch.cat([sequence, feed(model, blocks[-1], alone.lengths, context, step)[0]], dim=1)
        hidden = model.decoder(sequence, torch.arange(sequence.size(1), device=sequence.device))[
            :, -1:
        ]  # [1, 1, width]
        blocks.append(
            model.predict(hidden[:, :, None], one.outcomes[:, :, None], offsets, one.surface[:, None, None])
        )  # [1, 1, O, D]
    return torch.cat(blocks, dim=2)[0, 0]


def _select(branches: Branches, row: int, branch: int) -> Branches:
    at = (slice(row, row + 1), slice(branch, branch + 1))
    return Branches(
        branches.outcomes[at], branches.actions[at], branches.surface[at[0]], branches.request_time_ms[at[0]]
    )


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
