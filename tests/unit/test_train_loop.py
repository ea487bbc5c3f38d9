"""The loop, its checkpoints and resuming, on a log where each item is followed by the next one."""

import json

import numpy as np
import pytest
import torch

from pinrec_core.codec import quantize
from pinrec_core.config import TrainConfig, config_from_dict
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.evaluate import evaluate
from pinrec_core.release import ItemTable
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder
from pinrec_core.train.checkpoint import (
    add_test_metrics,
    load_checkpoint,
    load_metrics,
    load_run_config,
    write_json,
)
from pinrec_core.train.loop import learning_rate, product_precision, train

NUM_ITEMS, NUM_USERS, LENGTH = 24, 40, 10


@pytest.fixture(scope="module")
def dataset():
    """User u walks around a ring of items, from a place of their own: the next item is certain."""
    item_ids = (np.arange(NUM_USERS)[:, None] * 5 + np.arange(LENGTH)) % NUM_ITEMS
    content, scale = quantize(np.random.default_rng(0).normal(size=(NUM_ITEMS, 8)))
    events = item_ids.size
    return Dataset(
        name="ring",
        vocabulary=Vocabulary(("save",), ("save",), ("home",)),
        histories=Histories(
            user_ids=np.arange(NUM_USERS, dtype=np.int64),
            offsets=np.arange(0, events + 1, LENGTH, dtype=np.int64),
            item_ids=item_ids.reshape(-1).astype(np.int64),
            item_types=np.zeros(events, np.uint8),
            actions=np.ones(events, np.int32),
            surfaces=np.ones(events, np.int32),
            timestamps_ms=1_700_000_000_000 + np.tile(np.arange(LENGTH, dtype=np.int64) * 60_000, NUM_USERS),
        ),
        items=ItemTable(np.arange(NUM_ITEMS, dtype=np.int64), np.zeros(NUM_ITEMS, np.uint8), content, scale),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 8),
        watermark_ms=7,
    )


def config_of(variant="oc", **train_values):
    train_values = {
        "batch_size": 8, "max_steps": 8, "eval_every": 4, "random_negatives": 6, "learning_rate": 0.01,
        "warmup_steps": 2, **train_values,
    }  # fmt: skip
    return config_from_dict(
        {"model": {"variant": variant, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "embedding_dim": 16,
                   "id_dim": 8, "hash_rows": 100, "hash_dim": 8, "max_history": 10, "dropout": 0.1},
         "data": {"validation_share": 0.2, "test_share": 0.0},
         "generate": {"num_steps": 1, "offsets_per_step": 1},
         "train": train_values}
    )  # fmt: skip


def recall(value):
    return lambda model: {"unordered_recall": value}


def weights(run_dir, name="last"):
    from safetensors.torch import load_file

    return {k: v for k, v in load_file(run_dir / f"{name}.safetensors").items() if not k.startswith("optimizer")}


def test_it_learns_what_follows_what(dataset, tmp_path):
    config = config_of(max_steps=100, eval_every=50, warmup_steps=10)
    validation = dataset.split(config).validation
    result = train(
        config,
        dataset,
        tmp_path,
        lambda model: evaluate(model, dataset, validation, k=1, num_targets=1),
        progress=False,
    )
    assert result.metrics["unordered_recall"] > 0.8  # six of seven users or more; by chance it is one in 24
    model, _, _ = load_checkpoint(tmp_path)
    again = evaluate(model, dataset, validation, k=1, num_targets=1)
    assert again["unordered_recall"] == result.metrics["unordered_recall"]


@pytest.mark.parametrize("variant", ["uc", "oc", "mt_oc"])
def test_resuming_gives_the_very_weights_of_a_run_that_was_not_interrupted(dataset, tmp_path, variant):
    config = config_of(variant)
    train(config, dataset, tmp_path / "whole", recall(0.5), progress=False)

    calls = []

    def interrupted(model):
        calls.append(1)
        if len(calls) == 2:  # at step 8, after the checkpoint of step 4
            raise KeyboardInterrupt
        return {"unordered_recall": 0.5}

    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, tmp_path / "halves", interrupted, progress=False)
    torch.manual_seed(12345)  # resuming depends on nothing that is left in the process
    result = train(config, dataset, tmp_path / "halves", recall(0.5), progress=False, resume=True)
    assert result.steps == 8
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_two_runs_of_one_seed_are_alike_and_another_seed_differs(dataset, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train(config_of(seed=seed), dataset, tmp_path / name, recall(0.5), progress=False)
    one, same, other = (weights(tmp_path / name) for name in ("one", "same", "other"))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_the_best_weights_are_kept_and_patience_stops(dataset, tmp_path):
    recalls = iter([0.2, 0.6, 0.6, 0.5, 0.4, 0.9])
    config = config_of(max_steps=100, eval_every=2, patience=2)
    result = train(config, dataset, tmp_path, lambda model: {"unordered_recall": next(recalls)}, progress=False)
    assert (result.stopped_by, result.steps, result.best_step) == ("patience", 10, 6)
    assert result.metrics["unordered_recall"] == 0.6
    best, last = weights(tmp_path, "model"), weights(tmp_path)
    assert any(not torch.equal(best[k], last[f"model.{k}"]) for k in best)
    assert [v["step"] for v in json.loads((tmp_path / "metrics.json").read_text())["validations"]] == [2, 4, 6, 8, 10]


def test_a_time_limit_ends_with_a_validation_and_a_checkpoint(dataset, tmp_path):
    config = config_of(max_steps=10_000, eval_every=10_000, max_minutes=1e-6)
    result = train(config, dataset, tmp_path, recall(0.5), progress=False)
    assert (result.stopped_by, result.steps, result.best_step) == ("max_minutes", 1, 1)
    again = train(config, dataset, tmp_path, recall(0.5), progress=False, resume=True)
    assert again.steps == 1  # no time is left


def test_resuming_a_finished_run_does_nothing_and_more_steps_go_on(dataset, tmp_path):
    train(config_of(), dataset, tmp_path, recall(0.5), progress=False)
    before = weights(tmp_path)
    train(config_of(), dataset, tmp_path, recall(0.9), progress=False, resume=True)
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path).items())
    assert train(config_of(max_steps=10), dataset, tmp_path, recall(0.9), progress=False, resume=True).steps == 10


def test_resuming_with_another_configuration_names_the_key(dataset, tmp_path):
    train(config_of(), dataset, tmp_path, recall(0.5), progress=False)
    with pytest.raises(InvalidConfig, match=r"train\.batch_size has value 4; allowed on resume: 8"):
        train(config_of(batch_size=4), dataset, tmp_path, recall(0.5), progress=False, resume=True)
    with pytest.raises(InvalidConfig, match=r"is not a training run: config\.json is missing"):
        train(config_of(), dataset, tmp_path / "none", recall(0.5), progress=False, resume=True)


def test_a_loss_that_is_not_finite_names_the_learning_rate(dataset, tmp_path):
    with pytest.raises(InvalidConfig, match=r"train\.learning_rate has value 1e\+30"):
        train(config_of(learning_rate=1e30, gradient_clip=1e30), dataset, tmp_path, recall(0.5), progress=False)


def test_matched_one_to_one_the_embeddings_of_a_step_share_the_window_out(dataset, tmp_path):
    values = config_of("mt_oc", max_steps=200, eval_every=200).to_dict()
    values["targets"].update(max_offset=2, window_size=2, window_pick="one_to_one")
    values["generate"].update(offsets_per_step=2)
    config = config_from_dict(values)
    users = np.arange(NUM_USERS)
    result = train(config, dataset, tmp_path, lambda m: evaluate(m, dataset, users, k=1, num_targets=2), progress=False)
    # One step, one item each: the next two items, in whatever order.
    assert result.metrics["target_recall"] > 0.8
    assert result.metrics["unique_within_user"] > 0.9


@pytest.mark.parametrize("changes", [{"log_q": False}, {"in_batch_negatives": False}, {"random_negatives": 0}])
def test_the_ablations_train(dataset, tmp_path, changes):
    result = train(config_of(**changes), dataset, tmp_path, recall(0.5), progress=False)
    assert np.isfinite([v["loss"] for v in json.loads((tmp_path / "metrics.json").read_text())["validations"]]).all()
    assert result.steps == 8


def test_a_checkpoint_comes_back_whole(dataset, tmp_path):
    config = config_of()
    train(config, dataset, tmp_path, recall(0.5), progress=False)
    model, loaded, fitted = load_checkpoint(tmp_path)
    assert (loaded, fitted.vocabulary) == (config, dataset.vocabulary)
    texts = ["red bicycle", "blue sky"]
    np.testing.assert_array_equal(fitted.text_encoder.encode(texts), dataset.text_encoder.encode(texts))
    assert load_run_config(tmp_path) == config
    assert not model.training
    stored = weights(tmp_path, "model")
    assert all(torch.equal(v, stored[k]) for k, v in model.state_dict().items())
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "name": "ring", "content_dim": 8, "watermark_ms": 7, "num_users": NUM_USERS,
        "num_events": NUM_USERS * LENGTH, "num_items": NUM_ITEMS,
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "dataset.json", "last.safetensors", "metrics.json", "model.safetensors", "text_encoder",
        "vocabulary.json",
    ]  # fmt: skip


def test_test_metrics_stand_beside_the_validation(dataset, tmp_path):
    train(config_of(), dataset, tmp_path, recall(0.5), progress=False)
    assert load_metrics(tmp_path)["validation"]["unordered_recall"] == 0.5
    add_test_metrics(tmp_path, {"unordered_recall": 0.4})
    assert load_metrics(tmp_path)["test"] == {"unordered_recall": 0.4}


def test_what_is_no_run_says_so(tmp_path):
    with pytest.raises(InvalidConfig, match=r"is not a training run: config\.json is missing or not JSON"):
        load_checkpoint(tmp_path)


def test_damaged_weights_say_so(dataset, tmp_path):
    train(config_of(), dataset, tmp_path, recall(0.5), progress=False)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(InvalidConfig, match=r"holds no readable model\.safetensors"):
        load_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_learning_rate_warms_up_and_follows_a_cosine():
    config = TrainConfig(learning_rate=1.0, warmup_steps=4, max_steps=104)
    found = [learning_rate(config, step) for step in (0, 1, 3, 4, 54, 104, 200)]
    assert found == pytest.approx([0.25, 0.5, 1.0, 1.0, 0.05 + 0.95 * 0.5, 0.05, 0.05])


def test_bfloat16_products_train_alike_and_leave_the_process_as_it_was(dataset, tmp_path):
    before = torch.get_float32_matmul_precision()
    losses = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        train(config_of(precision=precision), dataset, folder, recall(0.5), progress=False)
        losses.append(json.loads((folder / "metrics.json").read_text())["validations"][-1]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert torch.get_float32_matmul_precision() == before
    with product_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
