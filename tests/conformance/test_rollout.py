"""Every fast path of generation agrees with its plain twin: cache = no cache, batch = single, shared prefix = own."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pinrec_core.config import Config, GenerateConfig, ModelConfig, TargetConfig
from pinrec_core.generate.rollout import Branches, branch_mask, rollout, rollout_uncached
from pinrec_core.generate.static_rollout import (
    StaticRollout,
    bucket_of,
    compiled,
    eager,
    lengths_up_to,
    programs_made,
)
from pinrec_core.model import packed_linear
from pinrec_core.model.inputs import collate
from pinrec_core.model.packed_linear import can_pack, pack
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary

VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))
CONTENT_DIM = 6


ONE_LAYER = {"id_layers": 1, "embedder_layers": 1, "head_layers": 1}
NETWORKS = {"gpt2": {}, "hstu": {"block": "hstu"}, "skips": {"skips": True}, "one layer": ONE_LAYER}
"""What differs from the default model."""


def config_with(plan, network, layers):
    model = ModelConfig(
        num_layers=layers, num_heads=2, hidden_dim=16, embedding_dim=8, id_dim=4, hash_rows=50, hash_dim=4
    )
    model = replace(model, max_history=9, **NETWORKS[network])
    return Config(model=model, targets=TargetConfig(max_offset=4), generate=plan)


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


def case(plan, lengths, outcomes, network="gpt2", layers=2):
    torch.manual_seed(0)
    model = PinRec(config_with(plan, network, layers), VOCABULARY, CONTENT_DIM).eval()
    for layer in model.decoder.blocks:
        if network == "hstu":  # biases large enough that a wrong distance shows
            torch.nn.init.normal_(layer.distance.weight)
    if network == "skips":  # the MLPs beside them start at 0
        for weight in model.output_head.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    rng = np.random.default_rng(0)
    inputs = collate([history(rng, n) for n in lengths])
    outcome = torch.tensor(outcomes)
    actions = torch.from_numpy(VOCABULARY.action_of_outcome.astype(np.int64))[outcome]
    surface = torch.arange(len(lengths)) % 2 + 1
    now = torch.full((len(lengths),), 1_700_000_000_000)
    return model, inputs, Branches(outcome, actions, surface, now)


def given_id_emb(model, inputs):
    """As the ID embedding's own stage gives them, instead of ids."""
    return replace(inputs, item_ids=None, id_emb=model.id_embedding(inputs.item_ids))


def static_rollout(model, plan, make_program=eager, batches=(2, 4), lengths=(4, 9)):
    return StaticRollout(model, plan, 2, CONTENT_DIM, make_program, batches, lengths)


PLANS = [
    GenerateConfig(num_steps=1, offsets_per_step=4),
    GenerateConfig(num_steps=3, offsets_per_step=2, feed="block"),
    GenerateConfig(num_steps=4, offsets_per_step=3, feed="first"),
]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_cached_equals_uncached(plan, network):
    model, inputs, branches = case(plan, [0, 1, 5, 9], outcomes=[[0, 1], [1, 0], [0, 1], [1, 1]], network=network)
    fast = rollout(model, inputs, branches, plan)
    plain = rollout_uncached(model, inputs, branches, plan)
    assert fast.shape == (4, 2, plan.num_steps * plan.offsets_per_step, 8)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(fast.norm(dim=-1), torch.ones(fast.shape[:-1]))


@pytest.mark.skipif(not can_pack(), reason="this CPU has no bfloat16 products")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_packed_equals_plain_up_to_half_precision(plan, network, monkeypatch):
    """bfloat16 keeps eight bits; cached = uncached holds as far."""
    monkeypatch.setattr(packed_linear, "FEW_PRODUCTS", 0)  # a model of this size would be left as it is
    model, inputs, branches = case(plan, [0, 1, 5, 9], outcomes=[[0, 1], [1, 0], [0, 1], [1, 1]], network=network)
    inputs = given_id_emb(model, inputs)
    plain = rollout(model, inputs, branches, plan)
    pack(model)
    packed = rollout(model, inputs, branches, plan)
    assert packed.dtype == torch.float32
    assert not torch.equal(packed, plain)
    assert (packed * plain).sum(dim=-1).min() > 0.999
    torch.testing.assert_close(packed, rollout_uncached(model, inputs, branches, plan), atol=0.02, rtol=0)
    torch.testing.assert_close(packed, static_rollout(model, plan)(inputs, branches), atol=0.02, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_static_equals_plain(plan, network):
    """Batches of several sizes through the same buffers: what an earlier one left in them is not seen."""
    outcomes = [[0, 1], [1, 0], [0, 1], [1, 1]]
    model, inputs, branches = case(plan, [9, 8, 9, 7], outcomes, network)
    static = static_rollout(model, plan)
    for lengths in ([9, 8, 9, 7], [3], [0, 1, 4], [9, 0], [2, 2, 2, 2]):
        _, inputs, branches = case(plan, lengths, outcomes[: len(lengths)])
        inputs = given_id_emb(model, inputs)
        plain = rollout(model, inputs, branches, plan)
        torch.testing.assert_close(static(inputs, branches), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@torch.inference_mode()
def test_what_is_no_number_stays_in_its_request(network, bad):
    plan = PLANS[2]
    model, inputs, branches = case(plan, [9, 8], outcomes=[[0, 1], [1, 0]], network=network)
    static = static_rollout(model, plan)
    inputs = given_id_emb(model, inputs)
    inputs.id_emb[0, 6] = bad
    assert not static(inputs, branches)[0].isfinite().any(dim=-1).all()
    for lengths in ([3, 2], [1], [5, 0]):
        _, inputs, branches = case(plan, lengths, outcomes=[[0, 1]] * len(lengths), network=network)
        inputs = given_id_emb(model, inputs)
        plain = rollout(model, inputs, branches, plan)
        torch.testing.assert_close(static(inputs, branches), plain, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_static_with_fewer_outcomes_than_it_has_branches_for():
    plan = PLANS[2]
    model, inputs, branches = case(plan, [5, 9], outcomes=[[1], [0]])
    inputs = given_id_emb(model, inputs)
    embeddings = static_rollout(model, plan)(inputs, branches)
    assert embeddings.shape == (2, 1, 12, 8)
    torch.testing.assert_close(embeddings, rollout(model, inputs, branches, plan), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_no_program_is_made_after_the_warm_up():
    plan = PLANS[2]
    model, _, _ = case(plan, [1], outcomes=[[0, 1]])
    made = []

    def counting(program):
        made.append(program)
        return program

    static = static_rollout(model, plan, counting)
    before = programs_made.copy()
    static.warm_up()
    assert len(made) == static.num_programs == 2 * 2 + 2  # prefills of (batch, length), decodes of batch
    for lengths in ([0], [4], [5, 1], [9, 9, 9, 9]):
        _, inputs, branches = case(plan, lengths, outcomes=[[0, 1]] * len(lengths))
        static(given_id_emb(model, inputs), branches)
    assert len(made) == 6
    assert programs_made - before == {"opening": 6}, "none while serving"


@pytest.mark.timeout(900)
@torch.inference_mode()
def test_compiled_equals_plain_and_never_compiles_again():
    plan = GenerateConfig(num_steps=1, offsets_per_step=3)  # compiling takes longer than all the rest
    model, _, _ = case(plan, [1], outcomes=[[0, 1]], layers=1)
    static = static_rollout(model, plan, compiled, batches=(2,), lengths=(9,))
    static.warm_up()
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([9, 3], [0], [5, 5]):
            _, inputs, branches = case(plan, lengths, outcomes=[[1, 0]] * len(lengths))
            inputs = given_id_emb(model, inputs)
            torch.testing.assert_close(
                static(inputs, branches), rollout(model, inputs, branches, plan), atol=1e-4, rtol=0
            )


@pytest.mark.timeout(900)
@torch.inference_mode()
def test_more_buckets_than_dynamo_compiles_of_one_function():
    """Traced by Dynamo, run as it is: what compiling would add takes minutes for so many shapes."""
    plan = PLANS[2]
    model, _, _ = case(plan, [1], outcomes=[[0, 1]], layers=1)
    make_program = partial(compiled, backend="eager")
    static = static_rollout(model, plan, make_program, batches=(1, 2, 3, 4), lengths=(3, 6, 9))
    static.warm_up()
    assert static.num_programs == 16
    with torch.compiler.set_stance("fail_on_recompile"):
        for lengths in ([9, 3], [0], [5, 5, 1, 2]):
            _, inputs, branches = case(plan, lengths, outcomes=[[1, 0]] * len(lengths))
            inputs = given_id_emb(model, inputs)
            plain = rollout(model, inputs, branches, plan)
            torch.testing.assert_close(static(inputs, branches), plain, atol=1e-5, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.inference_mode()
def test_recorded_graphs_equal_plain():
    from pinrec_core.generate.static_rollout import GraphRecorder

    plan = PLANS[2]
    model, _, _ = case(plan, [1], outcomes=[[0, 1]])
    model = model.cuda()
    recorder = GraphRecorder()
    static = static_rollout(model, plan, recorder)
    static.warm_up()
    assert recorder.num_captures == static.num_programs
    for lengths in ([0], [4], [5, 1], [9, 9, 9, 9], [2]):
        _, inputs, branches = case(plan, lengths, outcomes=[[0, 1]] * len(lengths))
        inputs = given_id_emb(model, inputs.to("cuda"))
        on_gpu = Branches(*(value.cuda() for value in vars(branches).values()))
        torch.testing.assert_close(static(inputs, on_gpu), rollout(model, inputs, on_gpu, plan), atol=1e-4, rtol=0)
    assert recorder.num_captures == static.num_programs


def test_buckets():
    assert lengths_up_to(256) == (64, 128, 256)
    assert lengths_up_to(100) == (64, 100)
    assert lengths_up_to(50) == (50,)
    assert [bucket_of((1, 4, 8), wanted) for wanted in (1, 2, 4, 5)] == [1, 4, 4, 8]


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
