"""One suite for every baseline, on planted logs: what it may learn from, what it answers, and that it learns at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pinrec_core.codec import quantize
from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.errors import InvalidData
from pinrec_core.eval.baselines import ALL, BaselineConfig
from pinrec_core.eval.baselines.pinnerformer import HorizonStream
from pinrec_core.eval.heldout import Corpus, HeldOut, held_out
from pinrec_core.eval.measure import VectorScorer, measure
from pinrec_core.release import ItemTable
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder

NUM_ITEMS, RUN, NUM_TRAINED, NUM_MEASURED = 24, 8, 72, 24
FIRST_MS, STEP_MS = 1_700_000_000_000, 60_000
SAVE, VIEW = 1, 2

PINREC = config_from_dict(
    {
        "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "embedding_dim": 16, "id_dim": 16,
                  "hash_rows": 200, "hash_dim": 8, "max_history": RUN, "dropout": 0.0},
        "train": {"batch_size": 24, "max_steps": 60, "warmup_steps": 5, "learning_rate": 1e-2, "random_negatives": 24,
                  "eval_every": 20, "action_dropout": 0.0},
    }
)  # fmt: skip
CONFIG = BaselineConfig(
    dim=16, num_layers=1, num_heads=2, max_history=RUN, dropout=0.0, epochs=20, batch_size=24, learning_rate=1e-2,
    num_negatives=16, eval_every=10, neighbours=8, shrinkage=0.0, horizon=2, codebooks=2, codes=4, beams=12,
    pinrec=PINREC,
)  # fmt: skip
BRIEF = replace(
    CONFIG, epochs=2, pinrec=replace(PINREC, train=replace(PINREC.train, max_steps=4, eval_every=2, patience=1))
)
"""Trained just enough that another input gives other scores."""

NOT_PERSONAL = {"popularity"}
"""Baselines that give everybody the same, and learn no order."""


def log_of(starts, actions=None):
    """A user for each start: items start, start + 1, ... around a circle of `NUM_ITEMS`, a minute apart."""
    users = len(starts)
    item_ids = (np.asarray(starts)[:, None] + np.arange(RUN)) % NUM_ITEMS
    angle = 2 * np.pi * np.arange(NUM_ITEMS) / NUM_ITEMS
    content, scale = quantize(np.stack([np.cos(angle), np.sin(angle), np.cos(3 * angle), np.sin(3 * angle)], axis=1))
    return Dataset(
        name="circle",
        vocabulary=Vocabulary(("save",), ("save", "view"), ("home",)),
        histories=Histories(
            user_ids=np.arange(users, dtype=np.int64),
            offsets=np.arange(users + 1, dtype=np.int64) * RUN,
            item_ids=item_ids.reshape(-1).astype(np.int64),
            item_types=np.zeros(users * RUN, dtype=np.uint8),
            actions=np.full(users * RUN, SAVE, np.int32) if actions is None else actions,
            surfaces=np.ones(users * RUN, dtype=np.int32),
            timestamps_ms=np.tile(FIRST_MS + np.arange(RUN, dtype=np.int64) * STEP_MS, users),
        ),
        items=ItemTable(np.arange(NUM_ITEMS, dtype=np.int64), np.zeros(NUM_ITEMS, np.uint8), content, scale),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 4),
        watermark_ms=0,
    )


STARTS = np.arange(NUM_TRAINED + NUM_MEASURED) * 7 % NUM_ITEMS
TRAINED, MEASURED = np.arange(NUM_TRAINED), np.arange(NUM_TRAINED, NUM_TRAINED + NUM_MEASURED)


def fitted(name, dataset, config=BRIEF, rows=TRAINED, until_ms=None, validate=None):
    baseline = ALL[name](config)
    baseline.fit(dataset, rows, until_ms, validate=validate)
    return baseline


def with_items(dataset, chosen, item_id):
    """The same log with the chosen events about another item."""
    h = dataset.histories
    return replace(dataset, histories=replace(h, item_ids=np.where(chosen, item_id, h.item_ids)))


@pytest.mark.parametrize("name", ALL)
def test_a_score_of_every_pin_from_one_query(name):
    dataset = log_of(STARTS)
    baseline = fitted(name, dataset)
    users = held_out(dataset, MEASURED, 1)
    scores = baseline.scorer()(users)
    assert baseline.name == name
    assert scores.shape == (NUM_MEASURED, 1, NUM_ITEMS)
    assert scores.dtype == torch.float32
    assert not scores.isnan().any()
    assert (scores > -torch.inf).sum(dim=-1).min() >= CONFIG.beams
    if isinstance(scorer := baseline.scorer(), VectorScorer):
        queries, real = scorer.generate(users)
        assert real.all()
        torch.testing.assert_close(queries @ scorer.vectors.T, scores)
    again = fitted(name, dataset).scorer()(users)
    assert torch.equal(again, scores), "the same seed and data"


@pytest.mark.parametrize("name", ALL)
def test_only_training_users_before_the_cut_are_learnt_from(name):
    dataset = log_of(STARTS)
    cut_ms = FIRST_MS + 5 * STEP_MS
    users = held_out(dataset, MEASURED, 1)
    expected = fitted(name, dataset, until_ms=cut_ms).scorer(dataset)(users)
    h = dataset.histories
    of_others = np.arange(h.num_events) >= NUM_TRAINED * RUN
    for unseen in (of_others, h.timestamps_ms >= cut_ms):
        scores = fitted(name, with_items(dataset, unseen, 0), until_ms=cut_ms).scorer(dataset)(users)
        assert torch.equal(scores, expected)
    seen = fitted(name, with_items(dataset, h.timestamps_ms < FIRST_MS + 3 * STEP_MS, 0), until_ms=cut_ms)
    assert not torch.equal(seen.scorer(dataset)(users), expected)


@pytest.mark.parametrize("name", ALL)
def test_scores_read_the_history_and_nothing_after_it(name):
    dataset = log_of(STARTS)
    baseline = fitted(name, dataset)
    users = held_out(dataset, MEASURED, 2)
    expected = baseline.scorer()(users)
    after = np.zeros(dataset.histories.num_events, dtype=bool)
    after[np.concatenate([user.targets for user in users])] = True
    assert torch.equal(baseline.scorer(with_items(dataset, after, 3))(users), expected)
    if name not in NOT_PERSONAL:
        assert not torch.equal(baseline.scorer(with_items(dataset, ~after, 3))(users), expected)


@pytest.mark.parametrize("name", ALL)
def test_a_user_without_engagements_is_scored(name):
    """Views are context, no engagements; the second user has no event at all."""
    actions = np.full(len(STARTS) * RUN, SAVE, np.int32)
    actions[-RUN:-1] = VIEW
    dataset = log_of(STARTS, actions)
    end = len(actions)
    users = [HeldOut(end - RUN, end - 1, np.array([end - 1])), HeldOut(end - 1, end - 1, np.array([end - 1]))]
    scores = fitted(name, dataset).scorer()(users)
    assert (scores > -torch.inf).sum() >= 2 * CONFIG.beams


@pytest.mark.parametrize("name", ALL)
def test_nothing_to_learn_from_is_refused(name):
    with pytest.raises(InvalidData, match="circle"):
        fitted(name, log_of(STARTS), until_ms=FIRST_MS)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NOT_PERSONAL])
def test_the_circle_is_learnt(name):
    """The next item is among the best three of those not seen, of which chance finds one in five."""
    dataset = log_of(STARTS)
    baseline = fitted(name, dataset, CONFIG)
    users = held_out(dataset, MEASURED, 1)
    found = measure(baseline.scorer(), dataset, Corpus.of(dataset), users, 3, 1, drop_seen=True, progress=False)
    assert found["unordered_recall"] >= 0.75


LEARNT_IN_EPOCHS = [name for name in ALL if name not in {"popularity", "item_knn"}]


@pytest.mark.parametrize("name", LEARNT_IN_EPOCHS)
def test_the_best_weights_are_kept(name):
    """Validation likes the first weights best; a validation later training stops, and they are back."""
    dataset = log_of(STARTS)
    users = held_out(dataset, MEASURED, 1)
    looks = []

    def validate(scorer):
        looks.append(scorer(users))
        return -float(len(looks))

    config = replace(BRIEF, epochs=3, eval_every=1, patience=1)
    kept = fitted(name, dataset, config, validate=validate).scorer()(users)
    assert len(looks) == 2
    assert not torch.equal(looks[0], looks[1])
    assert torch.equal(kept, looks[0])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_tiger_quantizes_item_vectors_where_content_is_rare(share, monkeypatch):
    dataset = log_of(STARTS)
    scale = np.where(np.arange(NUM_ITEMS) < share * NUM_ITEMS, dataset.items.scale, 0).astype(np.float32)
    dataset = replace(dataset, items=replace(dataset.items, scale=scale))
    widths = []

    def codes_of(vectors, codebooks, codes):
        widths.append(vectors.shape[1])
        return np.zeros((len(vectors), codebooks), dtype=np.int64)

    monkeypatch.setattr("pinrec_core.eval.baselines.tiger.residual_codes", codes_of)
    fitted("tiger", dataset)
    assert widths == [4 if share >= 0.5 else CONFIG.dim]
    if not share:
        with pytest.raises(InvalidData, match="circle has no item content; allowed for semantic_source: 'sasrec'"):
            fitted("tiger", dataset, replace(BRIEF, semantic_source="content"))


def test_pinnerformers_positives_are_uniform_within_the_horizon():
    """Offsets 1 and 2 alike where both are left; the last position has one."""
    stream = HorizonStream(log_of(STARTS), TRAINED, PINREC, horizon=2)
    ahead = []
    for step in range(20):
        batch = stream.batch(step)
        position = batch.position % (RUN + 1)
        assert batch.targets.shape[1] == 1
        assert len(batch.position) == 24 * RUN, "every position that has a target left is trained once"
        item = batch.candidate_ids[batch.targets[:, 0]]
        first = batch.inputs.item_ids[batch.position // (RUN + 1), 0]
        offset = (item - first) % NUM_ITEMS - position + 1
        assert (offset[position == RUN - 1] == 1).all()
        ahead.append(offset[position < RUN - 1])
    share = float((torch.cat(ahead) == 1).float().mean())  # of 3,360 draws: one standard deviation is .0086
    assert set(torch.cat(ahead).tolist()) == {1, 2}
    assert 0.46 < share < 0.54
