"""What each of two ranks does for test_distributed.py: `torchrun --nproc-per-node 2 -m tests.unit.two_ranks FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from pinrec_core.codec import quantize
from pinrec_core.config import config_from_dict
from pinrec_core.data.batches import BatchStream
from pinrec_core.data.dataset import Dataset
from pinrec_core.data.histories import Histories
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder
from pinrec_core.train.distributed import ALONE, join
from pinrec_core.train.loop import Trainer, train

NUM_ITEMS, NUM_USERS, LENGTH = 24, 9, 8
SEARCH, QUERY_ID = 3, 10**15
CASES = {
    "oc": {"model.variant": "oc"},
    "mt_oc, one to one": {"model.variant": "mt_oc"},
    "mt_oc, nearest, no in-batch": {
        "model.variant": "mt_oc", "targets.window_pick": "loss", "train.in_batch_negatives": False
    },
    "no logQ": {"model.variant": "oc", "train.log_q": False},
}  # fmt: skip


def dataset():
    """Users around a ring of items, two outcomes; the first user alone has a search query."""
    item_ids = (np.arange(NUM_USERS)[:, None] * 5 + np.arange(LENGTH)) % NUM_ITEMS
    actions = 1 + (item_ids % 3 == 0)
    item_ids[0, 2], actions[0, 2] = QUERY_ID, SEARCH
    events = item_ids.size
    ids = np.append(np.arange(NUM_ITEMS), QUERY_ID).astype(np.int64)
    content, scale = quantize(np.random.default_rng(0).normal(size=(len(ids), 8)))
    return Dataset(
        name="ring",
        vocabulary=Vocabulary(("save", "click"), ("save", "click", "search"), ("home",), ("home",)),
        histories=Histories(
            user_ids=np.arange(NUM_USERS, dtype=np.int64),
            offsets=np.arange(0, events + 1, LENGTH, dtype=np.int64),
            item_ids=item_ids.reshape(-1).astype(np.int64),
            item_types=np.where(item_ids == QUERY_ID, ItemType.SEARCH_QUERY, ItemType.PIN).reshape(-1).astype(np.uint8),
            actions=actions.reshape(-1).astype(np.int32),
            surfaces=np.ones(events, np.int32),
            timestamps_ms=1_700_000_000_000 + np.tile(np.arange(LENGTH, dtype=np.int64) * 60_000, NUM_USERS),
        ),
        items=ItemTable(ids, np.where(ids == QUERY_ID, ItemType.SEARCH_QUERY, ItemType.PIN).astype(np.uint8),
                        content, scale),
        titles={},
        text_encoder=TextEncoder.fit(["a b", "c d"], 8),
        watermark_ms=7,
    )  # fmt: skip


def config(**changes):
    """Five users a batch, which two ranks cannot halve; no dropout, whose masks differ between ranks."""
    values = {
        "model": {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "embedding_dim": 16, "id_dim": 8,
                  "hash_rows": 50, "hash_dim": 8, "max_history": 8, "dropout": 0.0},
        "data": {"validation_share": 0.0, "test_share": 0.0},
        "targets": {"max_offset": 4, "window_size": 3},
        "generate": {"num_steps": 1, "offsets_per_step": 1},
        "train": {"batch_size": 5, "random_negatives": 6, "learning_rate": 0.01, "max_steps": 4, "eval_every": 2},
    }  # fmt: skip
    for key, value in changes.items():
        section, name = key.split(".")
        values[section][name] = value
    return config_from_dict(values)


def gradients(case, ranks=ALONE):
    """Loss and gradients of two steps (the second after an update), by parameter; None where there is none."""
    data, settings = dataset(), config(**CASES[case])
    stream = BatchStream(data, np.arange(NUM_USERS), settings)
    trainer = Trainer(settings, data, stream, torch.device("cpu"), ranks)
    found = {}
    for step in range(2):
        found[f"loss {step}"] = trainer.step(step)  # leaves its gradients, clipped, behind
        for name, parameter in trainer.model.named_parameters():
            found[f"{step} {name}"] = None if parameter.grad is None else parameter.grad.clone()
    return found


def trained(folder, resume=False, **changes):
    """Train with a time limit that does not bite; how often this process was asked to measure, and the result."""
    measured = []

    def evaluate(model):
        measured.append(1)
        return {"unordered_recall": 0.5 + len(measured) / 100}

    settings = config(**{"model.variant": "mt_oc", "train.max_minutes": 60.0, **changes})
    result = train(settings, dataset(), folder / "run", evaluate, progress=False, resume=resume, device="cpu")
    return {"measured": len(measured), "steps": result.steps, "best_step": result.best_step,
            "metrics": dict(result.metrics), "stopped_by": result.stopped_by}  # fmt: skip


def main(folder):
    ranks = join("cpu")
    rank = ranks.shard.rank
    torch.save({case: gradients(case, ranks) for case in CASES}, folder / f"gradients-{rank}.pt")
    (folder / f"trained-{rank}.json").write_text(json.dumps(trained(folder)))
    trained(folder / "halves", **{"train.max_steps": 2})
    trained(folder / "halves", resume=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
