"""The network's parts: shapes, masks, conditioning and normalization."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pinrec_core.config import Config, GenerateConfig, ModelConfig
from pinrec_core.model.decoder import HstuBlock
from pinrec_core.model.id_embedding import hash_rows
from pinrec_core.model.inputs import collate
from pinrec_core.model.item_embedder import ItemEmbedder
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import ItemType, Vocabulary

MODEL = ModelConfig(num_layers=2, num_heads=2, hidden_dim=16, embedding_dim=8, id_dim=4, hash_rows=50, hash_dim=4)
VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))
D_SEM = 6


def pinrec(**changes):
    torch.manual_seed(0)
    model = replace(MODEL, **changes)
    one_offset = model.variant != "mt_oc"
    config = Config(model=model, generate=GenerateConfig(offsets_per_step=1 if one_offset else 4))
    vocabulary = replace(VOCABULARY, unconditioned=model.variant == "uc")
    return PinRec(config, vocabulary, D_SEM).eval()


def inputs_of(length, seed=0):
    rng = np.random.default_rng(seed)
    return collate(
        [
            SimpleNamespace(
                content=rng.integers(-127, 128, (length, D_SEM)).astype(np.int8),
                content_scale=np.full(length, 0.01, np.float32),
                item_ids=rng.integers(0, 2**62, length),
                item_types=np.zeros(length, np.uint8),
                actions=np.ones(length, np.int32),
                surfaces=np.ones(length, np.int32),
                timestamps_ms=1_700_000_000_000 + np.arange(length) * 60_000,
            )
        ]
    )


@torch.inference_mode()
def test_items_have_unit_length_and_an_mlp_a_type():
    embedder = ItemEmbedder(MODEL, D_SEM).eval()
    content, id_emb = torch.randn(2, D_SEM), torch.randn(2, 4)
    types = torch.tensor([ItemType.PIN, ItemType.SEARCH_QUERY])
    item_emb = embedder(content, types, id_emb)
    torch.testing.assert_close(item_emb.norm(dim=-1), torch.ones(2))
    moved = embedder(content, types, id_emb + 1)
    assert not torch.allclose(moved[0], item_emb[0])
    assert torch.equal(moved[1], item_emb[1])  # a query has no ID embedding


@pytest.mark.parametrize(("use_content", "use_ids"), [(True, False), (False, True)])
@torch.inference_mode()
def test_content_and_ids_can_each_be_left_out(use_content, use_ids):
    embedder = ItemEmbedder(replace(MODEL, use_content=use_content, use_ids=use_ids), D_SEM).eval()
    content, id_emb, types = torch.randn(1, D_SEM), torch.randn(1, 4), torch.tensor([ItemType.PIN])
    before = embedder(content, types, id_emb)
    assert torch.equal(embedder(content + 1, types, id_emb), before) != use_content
    assert torch.equal(embedder(content, types, id_emb + 1), before) != use_ids


@torch.inference_mode()
def test_with_skips_items_start_as_the_sum_of_their_parts():
    """Content 1, 2, ..., 6 and ID embedding 10, 20, 30, 40 in a space of 4: their parts of 4 numbers, summed."""
    embedder = ItemEmbedder(replace(MODEL, embedding_dim=4, skips=True), D_SEM).eval()
    content, id_emb = torch.arange(1.0, 7.0), torch.tensor([10.0, 20.0, 30.0, 40.0])
    parts = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 10.0, 20.0], [30.0, 40.0, 0.0, 0.0]]
    item_emb = embedder(content[None], torch.tensor([ItemType.PIN]), id_emb[None])
    torch.testing.assert_close(item_emb[0], F.normalize(torch.tensor(parts).sum(dim=0), dim=0))


@torch.inference_mode()
def test_with_skips_table_rows_start_as_the_id_embedding():
    model = pinrec(skips=True)
    ids = torch.tensor([7, -3])
    rows = model.id_embedding.table(hash_rows(ids, MODEL.num_hashes, MODEL.hash_rows))  # [2, k, E]
    torch.testing.assert_close(model.id_embedding(ids), rows.sum(dim=1))


@torch.inference_mode()
def test_with_skips_the_hidden_state_starts_as_what_is_generated():
    model = pinrec(skips=True, embedding_dim=16)
    hidden, one = torch.randn(1, 16), torch.tensor([1])
    torch.testing.assert_close(model.predict(hidden, one, one, one), F.normalize(hidden, dim=-1))


ONE_LAYER = {"id_layers": 1, "embedder_layers": 1, "head_layers": 1}


@torch.inference_mode()
def test_with_one_layer_an_item_is_linear_in_content_and_table_rows():
    """Before it is normalized: three ids and contents, the third the sum of the first two."""
    model = pinrec(skips=True, **ONE_LAYER)
    rows, content = torch.randn(3, MODEL.num_hashes * MODEL.hash_dim), torch.randn(3, D_SEM)
    rows[2], content[2] = rows[0] + rows[1], content[0] + content[1]
    vectors = model.item_embedder.pin(torch.cat([content, model.id_embedding.mlp(rows)], dim=1))
    torch.testing.assert_close(vectors[2], vectors[0] + vectors[1])


@torch.inference_mode()
def test_with_one_layer_what_is_generated_is_the_hidden_state_and_phi():
    model = pinrec(skips=True, embedding_dim=16, **ONE_LAYER)
    hidden, one = torch.randn(1, 16), torch.tensor([1])
    phi = model.output_head.outcome(one) + model.output_head.target_offset(one - 1) + model.output_head.surface(one)
    torch.testing.assert_close(model.predict(hidden, one, one, one), F.normalize(hidden + phi, dim=-1))


@pytest.mark.parametrize("changed", [{}, {"skips": True}, ONE_LAYER, {"skips": True, **ONE_LAYER}])
def test_every_weight_is_trained(changed):
    """No path is cut off by what starts at 0: after one step of gradients, each parameter has moved or has some."""
    model, inputs = pinrec(**changed).train(), inputs_of(4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    codes = torch.ones(1, 5, dtype=torch.int64)
    seen = set()
    for _ in range(2):
        optimizer.zero_grad()
        generated = model.predict(model.hidden_states(inputs), codes, codes, codes)  # [1, 5, D]
        query = model.embed_items(
            inputs.content, torch.full_like(inputs.item_types, ItemType.SEARCH_QUERY), torch.zeros(1, 4, 4)
        )
        ((generated * torch.randn(8)).sum() * model.logit_scale() + (query * torch.randn(8)).sum()).backward()
        seen |= {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
        optimizer.step()
    assert {name for name, _ in model.named_parameters()} == seen


@pytest.mark.parametrize("block", ["gpt2", "hstu"])
@torch.inference_mode()
def test_hidden_states_are_causal(block):
    """A change in event 3 reaches the states from index 3 on (index 0 is the start token's), and none before."""
    model, inputs = pinrec(block=block), inputs_of(5)
    content = inputs.content.clone()
    content[:, 2] += 1
    before, after = model.hidden_states(inputs), model.hidden_states(replace(inputs, content=content))
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3:] - before[:, 3:]).abs().amax(dim=-1).min() > 1e-6


@torch.inference_mode()
def test_an_hstu_block_by_its_equations():
    """One token and head at a time: weights are SiLUs of their own, the result is normalized, gated and added."""
    torch.manual_seed(0)
    block = HstuBlock(MODEL, max_positions=9).eval()
    torch.nn.init.normal_(block.distance.weight)
    x = torch.randn(1, 3, 16)
    at = torch.arange(3)
    visible, distance = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril(), (at[:, None] - at).clamp_min(0)[None]
    u, v, q, k = F.silu(block.uvqk(block.norm(x[0]))).split(16, dim=1)  # [3, 16], two heads of 8
    attended = torch.zeros(3, 16)
    for token in range(3):
        for head in range(2):
            own = slice(8 * head, 8 * head + 8)
            for slot in range(token + 1):
                score = q[token, own] @ k[slot, own] / 8**0.5 + block.distance.weight[token - slot, head]
                attended[token, own] += F.silu(score) * v[slot, own] / (token + 1)
    expected = x[0] + block.out(block.attended_norm(attended) * u)
    torch.testing.assert_close(block(x, visible, distance, None, 0)[0], expected)


@pytest.mark.parametrize(
    ("variant", "outcome_matters", "offset_matters"), [("uc", False, False), ("oc", True, False), ("mt_oc", True, True)]
)
@torch.inference_mode()
def test_what_each_variant_is_conditioned_on(variant, outcome_matters, offset_matters):
    model, hidden = pinrec(variant=variant), torch.randn(1, 16)
    zero, one, two = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])
    base = model.predict(hidden, zero, one, one)
    torch.testing.assert_close(base.norm(dim=-1), torch.ones(1))
    if variant != "uc":
        assert torch.equal(model.predict(hidden, one, one, one), base) != outcome_matters
    if variant == "mt_oc":
        assert torch.equal(model.predict(hidden, zero, two, one), base) != offset_matters
    assert not torch.equal(model.predict(hidden, zero, one, two), base)


@pytest.mark.parametrize("switch", ["use_time", "use_surface"])
@torch.inference_mode()
def test_time_and_surface_inputs_can_be_left_out(switch):
    inputs = inputs_of(3)
    field = "timestamps_ms" if switch == "use_time" else "surfaces"
    changed = replace(inputs, **{field: getattr(inputs, field) + (7_200_000 if field == "timestamps_ms" else 1)})
    for used in (True, False):
        model = pinrec(**{switch: used})
        assert torch.equal(model.hidden_states(changed), model.hidden_states(inputs)) != used


@torch.inference_mode()
def test_surface_in_conditioning_can_be_left_out():
    model, hidden = pinrec(surface_in_conditioning=False), torch.randn(1, 16)
    one = torch.tensor([1])
    assert torch.equal(model.predict(hidden, one, one, one), model.predict(hidden, one, one, one + 1))


def test_the_logit_scale_starts_and_stops_where_configured():
    model = pinrec()
    assert model.logit_scale().item() == pytest.approx(model.config.train.initial_logit_scale)
    model.log_logit_scale.data.fill_(99.0)
    assert model.logit_scale().item() == pytest.approx(model.config.train.max_logit_scale)


def test_a_served_model_refuses_to_embed_ids():
    config = Config(model=MODEL)
    model = PinRec(config, VOCABULARY, D_SEM, with_id_table=False)
    with pytest.raises(ValueError, match="embed_items"):
        model.item_vectors(torch.tensor([1]), torch.zeros(1, D_SEM), torch.zeros(1, dtype=torch.int64))
