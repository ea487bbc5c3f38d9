"""Trains one RecTools model and ranks items for the users it is given; runs in the peers' own environment.

Nothing of this project is imported here: the peers need numpy 1, the project numpy 2. Files in the folder given:

    train.parquet      user_id, item_id int64, place int64: a user's events in order
    validation.parquet user_id of those whose last event there decides when to stop; without it the worker draws them
    histories.parquet  the same of the users to rank for
    peer.json          model, seed, epochs, patience, validation_users, depth, and the network's sizes
    top-dropped.parquet, top-all.parquet   written: user_id, item_id, rank (from 1), without and with seen items
    peer-metrics.json                      written: seconds, epochs run, sequences, peak memory, versions

    .tools/peers/bin/python benchmarks/quality/peer_worker.py FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")  # deprecations inside the libraries compared with


def main(folder: Path) -> None:
    """Train, rank, write."""
    import rectools  # type: ignore[import-not-found]
    import torch
    from pytorch_lightning import seed_everything  # type: ignore[import-not-found]
    from rectools.dataset import Dataset  # type: ignore[import-not-found]

    plan = json.loads((folder / "peer.json").read_text())
    if plan["threads"]:
        torch.set_num_threads(plan["threads"])
    seed_everything(plan["seed"], verbose=False)
    training, histories = (_interactions(folder / f"{name}.parquet") for name in ("train", "histories"))
    model = build(plan, folder)
    started = time.monotonic()
    model.fit(Dataset.construct(training))
    seconds = time.monotonic() - started
    epochs = int(model.fit_trainer.current_epoch)
    _restore_best(model, folder)
    measured = {
        "fit_seconds": seconds,
        "epochs": epochs,
        "sequences": int((training["user_id"].value_counts() >= 2).sum()),
        "examples_per_second": int((training["user_id"].value_counts() >= 2).sum()) * epochs / seconds,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rectools": rectools.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if plan["depth"]:
        for name, drop_seen in (("top-dropped", True), ("top-all", False)):
            rank(model, histories, plan["depth"], drop_seen).to_parquet(folder / f"{name}.parquet")
    (folder / "peer-metrics.json").write_text(json.dumps(measured, indent=1))


def build(plan: dict[str, Any], folder: Path) -> Any:
    """The model that `plan` names. Raises KeyError for one that this file does not know."""
    from rectools.models import BERT4RecModel, HSTUModel, SASRecModel  # type: ignore[import-not-found]
    from rectools.models.nn.transformers.ligr import LiGRLayers  # type: ignore[import-not-found]

    common = {
        "n_blocks": plan["n_blocks"],
        "n_heads": plan["n_heads"],
        "n_factors": plan["n_factors"],
        "dropout_rate": plan["dropout"],
        "session_max_len": plan["session_max_len"],
        "lr": plan["learning_rate"],
        "batch_size": plan["batch_size"],
        "epochs": plan["epochs"],
        "deterministic": True,
        "recommend_torch_device": "cpu",
    }
    sampled = {"loss": "sampled_softmax", "n_negatives": plan["n_negatives"]} if plan["n_negatives"] else {}
    if plan["patience"]:
        # RecTools wants functions by their name, and what they are given apart.
        common["get_val_mask_func"] = validation_mask
        common["get_val_mask_func_kwargs"] = {
            "num_users": plan["validation_users"], "seed": plan["seed"], "folder": str(folder)
        }  # fmt: skip
        common["get_trainer_func"] = trainer
        common["get_trainer_func_kwargs"] = {
            "epochs": plan["epochs"], "patience": plan["patience"], "folder": str(folder / "checkpoints")
        }  # fmt: skip
    models: dict[str, Any] = {
        "sasrec": lambda: SASRecModel(**common, **sampled),
        # Shifted sequence, LiGR layers, sampled softmax: what its authors call eSASRec.
        "esasrec": lambda: SASRecModel(**common, **{"loss": "sampled_softmax", "n_negatives": 256} | sampled,
                                       transformer_layers_type=LiGRLayers),
        "bert4rec": lambda: BERT4RecModel(**common, **sampled),
        # It compares by cosine, so it needs its authors' temperature: with 1, RecTools' own, it hardly learns.
        "hstu": lambda: HSTUModel(**common, **sampled, relative_time_attention=False,
                                  lightning_module_kwargs={"logits_t": 0.05}),
    }  # fmt: skip
    return models[plan["model"]]()


def validation_mask(interactions: pd.DataFrame, num_users: int, seed: int, folder: str) -> np.ndarray:
    """The last event of the users that the folder names or of some, for early stopping: bool [rows]."""
    from rectools.models.nn.transformers.utils import leave_one_out_mask  # type: ignore[import-not-found]

    named = Path(folder) / "validation.parquet"
    if named.exists():
        chosen = pd.read_parquet(named)["user_id"].to_numpy()
    else:
        users = interactions["user_id"].unique()
        chosen = np.random.default_rng(seed).choice(users, size=min(num_users, len(users) // 10), replace=False)
    return np.asarray(leave_one_out_mask(interactions, chosen))


def trainer(epochs: int, patience: int, folder: str) -> Any:
    """Stops after `patience` epochs without a better recall on the validation events and keeps the best weights.

    A sampled loss has its minimum long before the recall has its maximum: stopping by it left SASRec on Beauty at two
    thirds of what its authors publish.
    """
    from pytorch_lightning import Callback, Trainer  # type: ignore[import-not-found]
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint  # type: ignore[import-not-found]

    class ValidationRecall(Callback):  # type: ignore[misc]
        """Logs `val_recall` of the whole catalogue."""

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            """Of one batch of users; Lightning averages over them."""
            users = len(batch["y"])
            found = recall_of(pl_module.torch_model, pl_module.item_embs, batch)
            pl_module.log("val_recall", found, on_step=False, on_epoch=True, batch_size=users)

    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ValidationRecall(),  # before those that look at what it logs
            EarlyStopping("val_recall", patience=patience, mode="max"),
            ModelCheckpoint(folder, "best", monitor="val_recall", mode="max", save_weights_only=True),
        ],
    )


def recall_of(model: Any, item_vectors: Any, batch: Any, k: int = 10) -> float:
    """Recall@k of the held-out item of each session among all unseen ones; column 0 of the items is padding."""
    sessions, targets = batch["x"], batch["y"]  # [B, L], [B, 1]
    last = model.encode_sessions(batch, item_vectors)[:, -1:, :]
    scores = model.similarity_module(last, item_vectors, None)[:, 0]  # [B, N]
    own = scores.gather(1, targets)
    scores = scores.scatter(1, sessions, float("-inf")).scatter(1, targets, own)
    scores[:, 0] = float("-inf")
    return float(((scores >= own).sum(dim=1) <= k).float().mean())


def _restore_best(model: Any, folder: Path) -> None:
    best = folder / "checkpoints" / "best.ckpt"
    if best.exists():
        model.load_weights_from_checkpoint(best)


def rank(model: Any, histories: pd.DataFrame, depth: int, drop_seen: bool) -> pd.DataFrame:
    """Best `depth` items of each user of `histories`: user_id, item_id, rank. A user without a known item has none."""
    from rectools.dataset import Dataset  # type: ignore[import-not-found]

    users = histories["user_id"].unique()
    found = model.recommend(
        users, Dataset.construct(histories), k=depth, filter_viewed=drop_seen, on_unsupported_targets="ignore"
    )
    return found[["user_id", "item_id", "rank"]].reset_index(drop=True)


def _interactions(path: Path) -> pd.DataFrame:
    """RecTools orders by time, whose place is taken by the order that we give: one second an event."""
    table = pd.read_parquet(path)
    table["datetime"] = pd.Timestamp("2000-01-01") + pd.to_timedelta(table.pop("place"), unit="s")
    table["weight"] = 1.0
    return table


if __name__ == "__main__":
    main(Path(sys.argv[1]))
