"""Evaluation with planted scores, and a model's rollout against one user at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pinrec_core.codec import quantize
from pinrec_core.config import GenerateConfig, config_from_dict
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.baselines.popularity import evaluate_popularity
from pinrec_core.eval.evaluate import (
    Corpus,
    HeldOut,
    Reading,
    Requests,
    RolloutScorer,
    VectorScorer,
    _longest_history,
    evaluate,
    evaluate_users,
    held_out,
    item_vectors,
    measure,
    measure_users,
    outcome_mix,
    train_frequency,
)
from pinrec_core.eval.served import evaluate_served
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder

SAVE, CLICK, VIEW = 1, 2, 3
VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "view"), ("home", "related"))
NUM_ITEMS = 20


def dataset_of(*users, unconditioned=False):
    """Each user: a list of (item id, action code, surface code); items 0..19."""
    events = [event for user in users for event in user]
    columns = np.array(events, dtype=np.int64)
    content, scale = quantize(np.random.default_rng(0).normal(size=(NUM_ITEMS, 4)))
    return Dataset(
        name="by hand",
        vocabulary=replace(VOCABULARY, unconditioned=unconditioned),
        histories=Histories(
            user_ids=np.arange(len(users), dtype=np.int64),
            offsets=np.cumsum([0] + [len(user) for user in users]).astype(np.int64),
            item_ids=columns[:, 0],
            item_types=np.zeros(len(events), dtype=np.uint8),
            actions=columns[:, 1].astype(np.int32),
            surfaces=columns[:, 2].astype(np.int32),
            timestamps_ms=1_700_000_000_000 + np.arange(len(events), dtype=np.int64) * 1000,
        ),
        items=ItemTable(np.arange(NUM_ITEMS, dtype=np.int64), np.zeros(NUM_ITEMS, np.uint8), content, scale),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 4),
        watermark_ms=0,
    )


USERS = (
    [(0, SAVE, 1), (1, VIEW, 1), (2, CLICK, 1), (3, SAVE, 2)],  # targets 2 (click) and 3 (save), request on surface 1
    [(4, SAVE, 1), (5, SAVE, 2), (6, SAVE, 2)],  # targets 5 and 6, request on surface 2
)


def measure_scores(dataset, rows, k, num_targets=2, drop_seen=True):
    """`rows`: scores [U, J, N] of the users in order."""
    corpus = Corpus.of(dataset)
    users = held_out(dataset, np.arange(dataset.histories.num_users), num_targets)
    scores = torch.tensor(rows)
    done = 0

    def scorer(batch):
        nonlocal done
        done += len(batch)
        return scores[done - len(batch) : done].clone()

    return measure(scorer, dataset, corpus, users, k, num_targets, drop_seen, progress=False)


def scores_preferring(*orders):
    """One query a user that ranks the items of `orders` first, in that order."""
    rows = np.zeros((len(orders), 1, NUM_ITEMS), dtype=np.float32)
    for row, order in enumerate(orders):
        rows[row, 0, list(order)] = np.arange(len(order), 0, -1)
    rows -= np.arange(NUM_ITEMS) * 1e-3  # no ties among the rest
    return rows


def test_the_last_targets_are_held_out_and_all_before_the_first_is_history():
    users = held_out(dataset_of(*USERS), np.array([0, 1]), num_targets=2)
    assert [(u.start, u.stop, u.targets.tolist()) for u in users] == [(0, 2, [2, 3]), (4, 5, [5, 6])]


def test_a_history_is_always_left_and_users_without_one_are_left_out():
    dataset = dataset_of(*USERS, [(7, SAVE, 1)], [(8, VIEW, 1)])
    users = held_out(dataset, np.arange(4), num_targets=8)
    assert [u.targets.tolist() for u in users] == [[2, 3], [5, 6]]


def test_recall_by_hand():
    # user 0: the click (2) first, the save (3) third; user 1: neither target within two
    found = measure_scores(dataset_of(*USERS), scores_preferring([2, 9, 3], [9, 10, 11, 5, 6]), k=2)
    assert found["users"] == 2
    assert found["unordered_recall"] == 0.5
    assert found["target_recall"] == pytest.approx((0.5 + 0.0) / 2)
    assert found["unordered_recall/home"] == 1.0
    assert found["unordered_recall/related"] == 0.0
    assert found["target_recall/click"] == 1.0  # item 2
    assert found["target_recall/save"] == 0.0  # items 3, 5, 6
    assert found["proportion_unique"] == 3 / 4  # 2, 9 and 9, 10
    assert found["unique_within_user"] == 1.0
    assert found["coverage"] == 3 / NUM_ITEMS


def test_seen_items_are_dropped_and_make_room():
    ranked = scores_preferring([0, 1, 2], [4, 5])  # user 0 has seen 0 and 1, user 1 has seen 4
    assert measure_scores(dataset_of(*USERS), ranked, k=1)["unordered_recall"] == 1.0
    assert measure_scores(dataset_of(*USERS), ranked, k=1, drop_seen=False)["unordered_recall"] == 0.0


def test_a_target_seen_before_counts_as_missed():
    dataset = dataset_of([(0, SAVE, 1), (0, CLICK, 1)])
    assert measure_scores(dataset, scores_preferring([0]), k=5, num_targets=1)["unordered_recall"] == 0.0


def test_queries_that_a_user_lacks_retrieve_nothing():
    rows = np.concatenate([scores_preferring([9], [9]), np.full((2, 1, NUM_ITEMS), -np.inf, np.float32)], axis=1)
    found = measure_scores(dataset_of(*USERS), rows, k=1)
    assert found["proportion_unique"] == 0.5  # item 9 twice, nothing from the second query
    assert found["unordered_recall"] == 0.0


def test_results_say_who_had_which_target():
    dataset = dataset_of(*USERS, [(2, SAVE, 1), (2, CLICK, 1), (5, VIEW, 1)])
    corpus, users = Corpus.of(dataset), held_out(dataset, np.array([0, 1]), 2)
    scores = torch.tensor(scores_preferring([2, 9, 3], [9, 10, 11, 5, 6]))
    counts = train_frequency(dataset, corpus, np.array([2]))
    found = measure_users(lambda batch: scores.clone(), dataset, corpus, users, k=2, num_targets=2, train_counts=counts)
    assert found.user_ids.tolist() == [0, 1]
    assert found.any_hit.tolist() == [1, 0]
    assert found.target_share.tolist() == [0.5, 0]
    assert found.surface.tolist() == [1, 2]
    assert found.history_length.tolist() == [2, 1]
    assert found.target_user.tolist() == [0, 0, 1, 1]
    assert [found.outcomes[outcome] for outcome in found.target_outcome] == ["click", "save", "save", "save"]
    assert found.target_hit.tolist() == [True, False, False, False]
    assert found.target_surface.tolist() == [1, 2, 2, 2]
    assert found.target_frequency.tolist() == [2, 0, 0, 0]  # item 2 was saved and clicked; 5 was only viewed


def test_training_counts_end_where_training_does():
    dataset = dataset_of([(2, SAVE, 1), (2, CLICK, 1), (2, SAVE, 1)], [(2, SAVE, 1)])
    until = int(dataset.histories.timestamps_ms[2])
    assert train_frequency(dataset, Corpus.of(dataset), np.array([0]), until).tolist()[2] == 2
    assert train_frequency(dataset, Corpus.of(dataset), np.array([0])).tolist()[2] == 3


@pytest.mark.parametrize(("variant", "generate"), [("uc", {}), ("oc", {})])
@pytest.mark.parametrize("drop_seen", [True, False])
@torch.inference_mode()
def test_a_searched_corpus_gives_the_results_of_all_scores(variant, generate, drop_seen):
    dataset = many_users(unconditioned=variant == "uc")
    corpus, users = Corpus.of(dataset), held_out(dataset, np.arange(9), 3)
    scorer = RolloutScorer(model_of(variant, dataset, **generate).eval(), dataset, corpus, num_targets=3)
    assert isinstance(scorer, VectorScorer)
    searched = measure_users(scorer, dataset, corpus, users, 3, 3, drop_seen)
    plain = measure_users(lambda batch: scorer(batch), dataset, corpus, users, 3, 3, drop_seen)
    assert searched.summary() == pytest.approx(plain.summary())
    assert searched.target_hit.tolist() == plain.target_hit.tolist()


def test_no_users_give_zero():
    found = evaluate_popularity(dataset_of(*USERS), np.array([0]), np.array([], dtype=np.int64), list_length=10)
    assert (found["users"], found["unordered_recall"]) == (0.0, 0.0)


def test_popularity_counts_training_users_only():
    dataset = dataset_of(*USERS, [(2, SAVE, 1), (3, SAVE, 1)], [(9, SAVE, 1), (9, SAVE, 1)])
    found = evaluate_popularity(dataset, np.array([2]), np.array([0]), list_length=2, num_targets=2)
    assert found["target_recall"] == 1.0  # the list is 2 and 3; item 9 is no training user's
    found = evaluate_popularity(dataset, np.array([3]), np.array([0]), list_length=1, num_targets=1)
    assert found["target_recall"] == 0.0


def model_of(variant, dataset, **generate):
    torch.manual_seed(0)
    config = config_from_dict(
        {"model": {"variant": variant, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "embedding_dim": 8,
                   "id_dim": 4, "hash_rows": 50, "hash_dim": 4, "max_history": 6},
         "targets": {"max_offset": 4},
         "generate": {"num_steps": 2, "offsets_per_step": 1, **generate}}
    )  # fmt: skip
    return PinRec(config, dataset.vocabulary, 4)


def many_users(unconditioned=False, seed=0):
    rng = np.random.default_rng(seed)
    users = []
    for _ in range(9):
        length = int(rng.integers(3, 12))
        users.append([(int(rng.integers(NUM_ITEMS)), int(rng.integers(1, 4)), 1) for _ in range(length)])
    return dataset_of(*users, unconditioned=unconditioned)


CASES = [("uc", {}), ("oc", {}), ("mt_oc", {"offsets_per_step": 2, "feed": "block"})]


@pytest.mark.parametrize(("variant", "generate"), CASES)
@torch.inference_mode()
def test_a_batch_of_users_scores_like_each_user_alone(variant, generate):
    dataset = many_users(unconditioned=variant == "uc")
    model = model_of(variant, dataset, **generate).eval()
    users = held_out(dataset, np.arange(9), num_targets=3)
    scorer = RolloutScorer(model, dataset, Corpus.of(dataset), num_targets=3)
    together = scorer(users)
    assert together.shape == (len(users), 3, NUM_ITEMS)
    for row, user in enumerate(users):
        alone = scorer([user])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)
        assert int((alone > -torch.inf).all(dim=1).sum()) == len(user.targets)


@torch.inference_mode()
def test_embeddings_are_divided_by_the_targets_own_outcomes():
    dataset = dataset_of([(0, SAVE, 1), (1, SAVE, 1), (2, SAVE, 1), (3, CLICK, 1)])
    scorer = RolloutScorer(model_of("oc", dataset).eval(), dataset, Corpus.of(dataset), num_targets=3)
    embeddings, real = scorer.generate(held_out(dataset, np.array([0]), 3))  # two saves, one click
    assert real.all()
    flipped = dataset_of([(0, SAVE, 1), (1, CLICK, 1), (2, CLICK, 1), (3, SAVE, 1)])  # two clicks, one save
    other = RolloutScorer(model_of("oc", flipped).eval(), flipped, Corpus.of(flipped), num_targets=3)
    others, _ = other.generate(held_out(flipped, np.array([0]), 3))
    # The history is the same, so the first embedding of each outcome is too: save is [0] here and [2] there.
    torch.testing.assert_close(embeddings[0, 0], others[0, 2])
    torch.testing.assert_close(embeddings[0, 2], others[0, 0])
    assert not torch.allclose(embeddings[0, 0], embeddings[0, 2])


def budgets_of(conditioning, users, training_mix=None):
    """Embeddings of (save, click) that each user's request asks for."""
    dataset = dataset_of(*users)
    requests = Requests(model_of("oc", dataset).eval(), dataset, conditioning, training_mix)
    held = held_out(dataset, np.arange(len(users)), 4)
    return requests.roll_out(held, model_of("oc", dataset).config.generate)[2].tolist()


# three saves, a click and a view, then the four targets: a save and three clicks
MIXED = [(i, action, 1) for i, action in enumerate([SAVE, SAVE, CLICK, VIEW, SAVE, SAVE, CLICK, CLICK, CLICK])]


@torch.inference_mode()
def test_budgets_follow_the_targets_the_past_or_one_outcome():
    assert budgets_of("true", [MIXED]) == [[1, 3]]
    assert budgets_of("past", [MIXED]) == [[3, 1]]
    assert budgets_of("save", [MIXED]) == [[4, 0]]
    assert budgets_of("click", [MIXED]) == [[0, 4]]


@torch.inference_mode()
def test_without_a_past_the_training_mix_stands_in():
    dataset = dataset_of([(0, VIEW, 1), (1, SAVE, 1), (2, SAVE, 1), (3, SAVE, 1), (4, SAVE, 1)])
    user = HeldOut(0, 1, np.arange(1, 5))
    model = model_of("oc", dataset).eval()
    for mix, expected in ((None, [2, 2]), (np.array([0.25, 0.75]), [1, 3])):
        requests = Requests(model, dataset, "past", mix)
        assert requests.roll_out([user], model.config.generate)[2].tolist() == [expected]


def test_the_training_mix_counts_target_events():
    assert outcome_mix(dataset_of([(0, SAVE, 1), (1, VIEW, 1), (2, CLICK, 1), (3, SAVE, 1)])).tolist() == [2 / 3, 1 / 3]
    assert outcome_mix(dataset_of([(0, VIEW, 1)])).tolist() == [0.5, 0.5]


def test_an_unknown_conditioning_is_refused():
    dataset = dataset_of(*USERS)
    with pytest.raises(InvalidConfig, match=r"conditioning has value 'buy'; allowed: one of \['true', 'past', 'save'"):
        Requests(model_of("oc", dataset), dataset, "buy")


@torch.inference_mode()
def test_conditioning_changes_what_oc_is_asked_and_not_what_uc_is_asked():
    for variant in ("oc", "uc"):
        dataset = many_users(unconditioned=variant == "uc", seed=3)
        model, users = model_of(variant, dataset).eval(), held_out(dataset, np.arange(9), 3)
        true, past = (RolloutScorer(model, dataset, Corpus.of(dataset), 3, name)(users) for name in ("true", "past"))
        assert torch.equal(true, past) == (variant == "uc")


def test_cold_items_are_told_by_what_was_trained_on():
    dataset = many_users()
    users = held_out(dataset, np.arange(3), 3)
    training = replace(dataset, histories=many_users(seed=1).histories)
    found = evaluate_users(model_of("oc", dataset), dataset, users, Reading(3, 3), training)
    items = dataset.histories.item_ids[np.concatenate([user.targets for user in users])]
    trained = training.histories.item_ids[training.target_outcomes >= 0]
    assert found.target_frequency.tolist() == [int((trained == item).sum()) for item in items]


def test_evaluate_leaves_the_model_as_it_was_and_depends_on_nothing_else():
    dataset = many_users()
    model = model_of("oc", dataset).train()
    first = evaluate(model, dataset, np.arange(9), k=3, num_targets=3)
    assert model.training
    assert first == evaluate(model, dataset, np.arange(9), k=3, num_targets=3)
    assert first["users"] == len(held_out(dataset, np.arange(9), 3))
    assert 0.0 <= first["target_recall"] <= first["unordered_recall"] <= 1.0


def test_targets_beyond_the_configured_rollout_shorten_the_history():
    dataset = many_users()
    found = evaluate(model_of("oc", dataset), dataset, np.arange(9), k=3, num_targets=6)  # 6 steps, 2 configured
    assert found["users"] == len(held_out(dataset, np.arange(9), 6))


def test_the_history_that_fits_follows_from_what_was_trained_and_not_from_the_plan_read():
    """1 + 6 events + 1 fed back = 8 positions: 2 steps leave 6 events, 4 steps 4 of them, whatever is configured."""
    model = model_of("mt_oc", many_users())
    model.config = replace(model.config, generate=replace(model.config.generate, offsets_per_step=4, num_steps=9))
    plan = GenerateConfig(num_steps=2, offsets_per_step=1)
    assert _longest_history(model, plan) == 6
    assert _longest_history(model, replace(plan, num_steps=4)) == 4
    assert _longest_history(model, replace(plan, num_steps=8)) == 0
    with pytest.raises(InvalidConfig, match="generate has value 9 steps, 8 tokens fed back; allowed: at most 7"):
        _longest_history(model, replace(plan, num_steps=9))


def test_more_targets_than_the_model_has_positions_for_are_refused():
    dataset = dataset_of(*[[(item % NUM_ITEMS, SAVE, 1) for item in range(12)]] * 2)
    with pytest.raises(InvalidConfig, match="allowed: at most 7"):
        evaluate(model_of("oc", dataset), dataset, np.arange(2), k=3, num_targets=9)


def test_a_search_query_is_neither_target_nor_corpus():
    dataset = dataset_of(*USERS)
    types = np.array(dataset.items.types)
    types[5] = ItemType.SEARCH_QUERY
    events = np.array(dataset.histories.item_types)
    events[5] = ItemType.SEARCH_QUERY
    dataset = replace(
        dataset,
        items=replace(dataset.items, types=types),
        histories=replace(dataset.histories, item_types=events),
    )
    assert 5 not in Corpus.of(dataset).ids
    assert held_out(dataset, np.array([1]), 2)[0].targets.tolist() == [6]


def slow_served(model, dataset, user, counts, plan):
    """Compression off, allocation equal: rank by rank, each embedding takes its item if nobody has it yet."""
    corpus = Corpus.of(dataset)
    embeddings, outcomes, _ = Requests(model, dataset).roll_out([user], plan)
    seen = set(dataset.histories.item_ids[user.start : user.stop].tolist())
    vectors = item_vectors(model, dataset, corpus)
    assert outcomes.shape[1] == 1, "one outcome only"
    per = counts // embeddings.shape[2]
    ranked = [
        [i for i in row.argsort(descending=True).tolist() if i not in seen] for row in embeddings[0, 0] @ vectors.T
    ]
    scores = embeddings[0, 0] @ vectors.T
    taken, held = {}, [0] * len(ranked)
    for rank in range(len(corpus.ids)):  # a claim of a better rank always comes first
        claims = [(-float(scores[e, r[rank]]), e, r[rank]) for e, r in enumerate(ranked) if rank < len(r)]
        for _, e, item in sorted(claims):
            if held[e] < per and item not in taken:
                taken[item] = e
                held[e] += 1
    return set(taken)


@torch.inference_mode()
def test_served_candidates_are_what_the_embeddings_take_in_turn():
    users = [[(i, SAVE, 1) for i in rng.permutation(NUM_ITEMS)[:8]] for rng in map(np.random.default_rng, range(6))]
    dataset = dataset_of(*users)
    model = model_of("oc", dataset, compression_threshold=2.0).eval()
    expected = []
    for user in held_out(dataset, np.arange(6), 2):
        served = slow_served(model, dataset, user, counts=6, plan=model.config.generate)
        assert len(served) == 6
        expected.append(np.mean([int(i) in served for i in dataset.histories.item_ids[user.targets]]))
    found = evaluate_served(model, dataset, np.arange(6), k=3, num_targets=2)
    assert found["served_target_recall"] == pytest.approx(np.mean(expected))
    assert found["served_unordered_recall"] == pytest.approx(np.mean(np.array(expected) > 0))
    assert found["compression_ratio"] == 1.0


@pytest.mark.parametrize(("variant", "generate"), CASES)
def test_the_whole_corpus_serves_every_target_not_seen(variant, generate):
    users = [
        [(i, 1 + i % 2, 1) for i in rng.permutation(NUM_ITEMS)[:8]] for rng in map(np.random.default_rng, range(6))
    ]
    dataset = dataset_of(*users, unconditioned=variant == "uc")
    model = model_of(variant, dataset, compression_threshold=-1.0, **generate)
    found = evaluate_served(model, dataset, np.arange(6), k=NUM_ITEMS, num_targets=3)
    assert found["served_target_recall"] == 1.0
    branch = model.config.generate.num_steps * model.config.generate.offsets_per_step
    assert found["compression_ratio"] == pytest.approx(branch)  # every branch becomes one embedding
    assert evaluate_served(model, dataset, np.arange(0))["served_target_recall"] == 0.0
