"""Every fast path of generation agrees with its plain twin: cache = no cache, batch = single, shared prefix = own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pinrec_core.config import Config, GenerateConfig, ModelConfig, TargetConfig
from pinrec_core.generate.rollout import Branches, branch_mask, rollout, rollout_uncached
from pinrec_core.model.inputs import collate
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary

VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))
CONTENT_DIM = 6


def config_with(plan, block):
    model = ModelConfig(num_layers=2, num_heads=2, hidden_dim=16, embedding_dim=8, id_dim=4, hash_rows=50, hash_dim=4)
    return Config(model=replace(model, max_history=9, block=block), targets=TargetConfig(max_offset=4), generate=plan)


def history(rng, length):
    return SimpleNamespace(
        content=rng.integers(-127, 128, (length, CONTENT_DIM)).astype(np.int8),
        content_scale=rng.random(length).astype(np.float32) / 100,
        item_ids=rng.integers(-(2**63), 2**63 - 1, length),
        item_types=rng.integers(0, 2, length).astype(np.uint8),
        actions=rng.integers(0, 4, length).astype(np.int32),
        surfaces=rng.integers(0, 3, length).astype(np.int32),
        timestamps_ms=np.sort(rng.integers(1_600_000_000_000, 1_700_000_000_000, length)),
    )


def case(plan, lengths, outcomes, block="gpt2"):
    torch.manual_seed(0)
    model = PinRec(config_with(plan, block), VOCABULARY, CONTENT_DIM).eval()
    for layer in model.decoder.blocks:
        if block == "hstu":  # biases large enough that a wrong distance shows
            torch.nn.init.normal_(layer.distance.weight)
    rng = np.random.default_rng(0)
    inputs = collate([history(rng, n) for n in lengths])
    outcome = torch.tensor(outcomes)
    actions = torch.from_numpy(VOCABULARY.action_of_outcome.astype(np.int64))[outcome]
    surface = torch.arange(len(lengths)) % 2 + 1
    now = torch.full((len(lengths),), 1_700_000_000_000)
    return model, inputs, Branches(outcome, actions, surface, now)


PLANS = [
    GenerateConfig(num_steps=1, offsets_per_step=4),
    GenerateConfig(num_steps=3, offsets_per_step=2, feed="block"),
    GenerateConfig(num_steps=4, offsets_per_step=3, feed="first"),
]


@pytest.mark.parametrize("block", ["gpt2", "hstu"])
@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_cached_equals_uncached(plan, block):
    model, inputs, branches = case(plan, [0, 1, 5, 9], outcomes=[[0, 1], [1, 0], [0, 1], [1, 1]], block=block)
    fast = rollout(model, inputs, branches, plan)
    plain = rollout_uncached(model, inputs, branches, plan)
    assert fast.shape == (4, 2, plan.num_steps * plan.offsets_per_step, 8)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.norm(dim=-1), torch.ones(fast.shape[:-1]))


@torch.inference_mode()
def test_an_outcomes_embeddings_do_not_depend_on_the_other_branches():
    """A budget changes counts, never an outcome's own embeddings."""
    plan = PLANS[1]
    model, inputs, both = case(plan, lengths=[5, 9], outcomes=[[0, 1], [0, 1]])
    _, _, alone = case(plan, lengths=[5, 9], outcomes=[[1], [1]])
    together = rollout(model, inputs, both, plan)[:, 1]
    torch.testing.assert_close(rollout(model, inputs, alone, plan)[:, 0], together, atol=1e-5, rtol=0)
    assert not torch.allclose(together, rollout(model, inputs, both, plan)[:, 0], atol=1e-2)


@torch.inference_mode()
def test_history_content_changes_the_rollout():
    plan = PLANS[1]
    model, inputs, branches = case(plan, lengths=[5], outcomes=[[0, 1]])
    changed = replace(inputs, content=-inputs.content)
    assert not torch.allclose(
        rollout(model, inputs, branches, plan), rollout(model, changed, branches, plan), atol=1e-3
    )


def test_branch_mask_by_hand():
    """One user with 1 of 2 history rows valid, 2 branches, 1 fed token, 3 steps: queries s1b0 s1b1 s2b0 s2b1."""
    mask = branch_mask(torch.tensor([1]), prefix=3, num_branches=2, fed=1, num_steps=3)[0, 0].int().tolist()
    assert mask == [
        [1, 1, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 1, 0, 1, 0],
        [1, 1, 0, 0, 1, 0, 1],
    ]
