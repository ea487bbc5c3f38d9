"""One run of the matrix: train, then read in every way that a table asks for. What is there already is not redone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality import peers
from benchmarks.quality.matrix import BEAUTY, STEPS_SCALE, Job, Reading, Run, base_config, headline
from benchmarks.quality.store import RunStore
from benchmarks.quality.worlds import World, open_world, training_config
from pinrec_core.config import Config, load_config
from pinrec_core.eval import baselines, evaluate
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.evaluate import (
    HeldOut,
    RolloutScorer,
    Scorer,
    batches_of,
    drop_seen_items,
    held_out,
    measure_users,
    target_columns,
    users_at_once,
)
from pinrec_core.eval.results import UserResults
from pinrec_core.eval.served import evaluate_served
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary
from pinrec_core.train.checkpoint import load_checkpoint
from pinrec_core.train.loop import train

_VALIDATION_TARGETS = 4_000
"""Targets of the held-out users whose recall decides which weights of a run are kept."""
_PEER_VALIDATION_USERS = 2_000
"""Training users (a tenth of all at most) whose last event decides which weights of a peer are kept."""
_LEAST_HISTORY = 8
"""Engagements left before the targets where a reading wants more of these than the protocol holds out."""
_PEER_DEPTH = 200
"""Items that a peer ranks for each user, more than any reading looks at."""
_PEER_DROPOUT = 0.2
"""RecTools' own."""


class _Rivals(NamedTuple):
    """Sizes of what PinRec is compared with.

    RecTools gathers a vector for each negative of each padded position: its own 256 of both take hours a model on two
    cores.
    """

    dropout: float
    """Of our baselines."""
    drawn: int
    """Negatives of a step of our baselines, for all its rows."""
    sequences: float
    """That our baselines see, by those that PinRec sees."""
    factors: int
    """Width of a peer, where a run does not say otherwise."""
    negatives: int
    """Sampled ones of a peer."""


_RIVALS = _Rivals(dropout=0.2, drawn=1_024, sequences=1.0, factors=128, negatives=64)
_RIVALS_ON_BEAUTY = _Rivals(dropout=0.5, drawn=4_096, sequences=3.2, factors=64, negatives=128)
"""The best for SASRec on validation users (docs/studies.md). It gains for 30 epochs, PinRec for 12: each trains for as
long as it gains."""
_PEER_PATIENCE = 10
"""Epochs without a better validation recall before a peer's training stops."""


class Runner:
    """Trains and reads; keeps the world of the last run open."""

    def __init__(self, datasets: Path, work: Path, store: RunStore, made_by: Mapping[str, Any], progress: bool) -> None:
        self._datasets, self._work, self._store = datasets, work, store
        self._made_by, self._progress = made_by, progress
        self._opened: tuple[object, World] | None = None

    def run(self, job: Job) -> None:
        """Do what is missing of a job. Raises InvalidConfig, InvalidData."""
        missing = [reading for reading in job.readings if not self._store.has(job.run, reading)]
        if not missing:
            return
        folder = self._store.open(job.run, self._made_by)
        world = self._world(job.run).for_variant(job.run.model)
        train_and_read = self._pinrec if job.run.is_pinrec else self._peer if job.run.is_peer else self._baseline
        train_and_read(job.run, missing, world, folder)

    def _world(self, run: Run) -> World:
        wanted = (run.world, run.limits)
        if self._opened is None or self._opened[0] != wanted:
            self._opened = (wanted, open_world(run.world, self._datasets, self._work, run.limits))
        return self._opened[1]

    def _pinrec(self, run: Run, readings: list[Reading], world: World, folder: Path) -> None:
        model_folder = folder / "model"
        if not self._is_trained(run, model_folder):
            self._train_pinrec(run, world, model_folder)
        for reading in readings:
            model, _, _ = load_checkpoint(model_folder)
            results, beside = read_pinrec(model, world, reading, self._progress)
            if reading.num_targets == 1:
                scorer = RolloutScorer(model, world.dataset, world.corpus, 1)
                beside |= mean_ndcg(scorer, world, reading)
            self._store.save(run, reading, results, beside)

    def _is_trained(self, run: Run, folder: Path) -> bool:
        """Whether the model is here: results may have come without it."""
        goes_on = (folder / "last.safetensors").exists()
        return "steps" in self._store.notes(run) and (folder / "model.safetensors").exists() and not goes_on

    def _train_pinrec(self, run: Run, world: World, folder: Path) -> None:
        """Go on from a checkpoint if there is one; which weights are kept is decided by validation users."""
        config = pinrec_config(run)
        users, reading = validation_users(world), headline(run.world)

        def validate(model: PinRec) -> Mapping[str, float]:
            return read_pinrec(model, replace(world, parts=replace(world.parts, test=users)), reading)[0].summary()

        started = time.process_time()
        done = train(config, world.training, folder, validate, self._progress, (folder / "last.safetensors").exists())
        self._store.note(run, {
            "cpu_seconds": time.process_time() - started,
            "steps": done.steps,
            "best_step": done.best_step,
            "stopped_by": done.stopped_by,
            "sequences": done.steps * config.train.batch_size,
            "train_users": len(world.parts.train_rows),
            "corpus_size": len(world.corpus.ids),
        })  # fmt: skip
        (folder / "last.safetensors").unlink()  # only a run that goes on needs it

    def _baseline(self, run: Run, readings: list[Reading], world: World, folder: Path) -> None:
        model = baselines.ALL[run.model](baseline_config(run, world))
        users, reading = validation_users(world), headline(run.world)

        def validate(_: Scorer) -> float:
            # The scorer that is given reads what was trained on, where the held-out users are not.
            return read_scorer(model.scorer(world.dataset), world, users, reading).summary()["target_recall"]

        started = time.process_time()
        model.fit(world.training, world.parts.train_rows, None, self._progress, validate)
        self._store.note(run, {"cpu_seconds": time.process_time() - started})
        scorer = model.scorer(world.dataset)
        for reading in readings:
            results = read_scorer(scorer, world, world.parts.test, reading, self._progress)
            beside = mean_ndcg(scorer, world, reading) if reading.num_targets == 1 else {}
            self._store.save(run, reading, results, beside)

    def _peer(self, run: Run, readings: list[Reading], world: World, folder: Path) -> None:
        exchange = folder / "model"
        if not (exchange / "peer-metrics.json").exists():
            shutil.rmtree(exchange, ignore_errors=True)
            given = validation_users(world) if dict(run.settings).get("peer.validation") == "given" else None
            peers.write_exchange(
                exchange, world.dataset, world.parts.train_events, world.parts.test, peer_plan(run), given
            )
            self._store.note(run, peers.run_worker(exchange))
        for reading in readings:
            path = exchange / ("top-dropped.parquet" if reading.drop_seen else "top-all.parquet")
            scorer = peers.RankedScorer(path, world.corpus, world.parts.test)
            results = read_scorer(scorer, world, world.parts.test, reading, self._progress)
            beside = mean_ndcg(scorer, world, reading) if reading.num_targets == 1 else {}
            self._store.save(run, reading, results, beside)


def pinrec_config(run: Run) -> Config:
    """The world's base configuration with what the run changes; equal steps and equal room to generate for all."""
    settings, limits = dict(run.settings), dict(run.limits)
    scale = float(settings.pop(STEPS_SCALE, 1.0))
    base = load_config(base_config(run.world))
    overrides: dict[str, Any] = {"model.variant": run.model, "train.seed": run.seed}
    if run.model != "mt_oc":
        overrides |= {"generate.offsets_per_step": 1, "targets.position_share": 1.0}
    config = training_config(load_config(base_config(run.world), {**overrides, **settings}))
    steps = int(limits.get("max_steps", 0)) or base.train.max_steps
    schedule = replace(
        config.train,
        max_steps=max(1, round(scale * steps)),
        warmup_steps=min(config.train.warmup_steps, max(1, steps // 10)),
        eval_every=max(1, min(config.train.eval_every, round(scale * steps))),
    )
    targets = max(base.targets.max_offset, config.targets.max_offset)
    # As many slots for what is fed back whatever the block, so that every variant is given the same history.
    generate = replace(config.generate, num_steps=1 + -(-targets // config.generate.num_fed))
    return replace(config, train=schedule, generate=generate)


def baseline_config(run: Run, world: World) -> BaselineConfig:
    """The sizes of the PinRec runs on the same world, and as many sequences seen (or more, see `_Rivals`)."""
    like = pinrec_config(replace(run, model="uc"))
    sequences = _rivals(run).sequences * like.train.max_steps * like.train.batch_size
    return BaselineConfig(
        dim=like.model.hidden_dim,
        num_layers=like.model.num_layers,
        num_heads=like.model.num_heads,
        max_history=like.model.max_history,
        dropout=_rivals(run).dropout,
        num_negatives=_rivals(run).drawn,
        epochs=max(1, round(sequences / len(world.parts.train_rows))),
        batch_size=like.train.batch_size,
        seed=run.seed,
        pinrec=like,
    )


def peer_plan(run: Run, depth: int = _PEER_DEPTH) -> dict[str, Any]:
    """What a peer is told: the PinRec runs' sizes; losses and everything else as its own library has them."""
    like, limits = pinrec_config(replace(run, model="uc", settings=())), dict(run.limits)
    settings = dict(run.settings)
    return {
        "model": run.model.partition("/")[2],
        "seed": run.seed,
        "epochs": int(limits["peer_epochs"]),
        "patience": int(settings.get("peer.patience", _PEER_PATIENCE)),
        "validation_users": _PEER_VALIDATION_USERS,
        "depth": depth,
        "n_blocks": like.model.num_layers,
        "n_heads": like.model.num_heads,
        "n_factors": int(settings.get("peer.n_factors", _rivals(run).factors)),
        "dropout": _PEER_DROPOUT,
        "session_max_len": like.model.max_history,
        "learning_rate": float(settings.get("peer.learning_rate", 1e-3)),
        "batch_size": int(settings.get("peer.batch_size", 128)),
        "n_negatives": int(settings.get("peer.n_negatives", _rivals(run).negatives)),
        "threads": int(settings.get("peer.threads", 0)),
    }


def _rivals(run: Run) -> _Rivals:
    return _RIVALS_ON_BEAUTY if run.world.startswith(BEAUTY) else _RIVALS


def validation_users(world: World) -> list[HeldOut]:
    """Held-out users with about `_VALIDATION_TARGETS` targets, evenly from all: ids may tell how easy a user is."""
    users = world.parts.validation
    most = -(-_VALIDATION_TARGETS // max(len(user.targets) for user in users))
    return users[:: max(1, len(users) // most)]


def read_scorer(
    scorer: Scorer, world: World, users: list[HeldOut], reading: Reading, progress: bool = False
) -> UserResults:
    """Per-user results of anything that scores the corpus."""
    most = max(len(user.targets) for user in users)
    return measure_users(
        scorer, world.dataset, world.corpus, users, reading.k, most, reading.drop_seen, progress, world.train_counts
    )


def read_pinrec(
    model: PinRec, world: World, reading: Reading, progress: bool = False
) -> tuple[UserResults, dict[str, float]]:
    """Per-user results of a model's free-running rollout on the world's test users, and what else was measured."""
    users = users_of(world, reading)
    if reading.float_content:
        model = FloatContent(model, world.dataset.vocabulary, world.dataset.items.ids, world.float_content())
    configured, model.config = model.config, as_read(model.config, reading)
    way = evaluate.Reading(reading.k, reading.num_targets, reading.drop_seen, reading.conditioning)
    results = evaluate.evaluate_users(model, world.dataset, users, way, world.training, progress)
    beside: dict[str, float] = {}
    if reading.compression_threshold:
        rows = rows_of(world, users)
        beside = evaluate_served(model, world.dataset, rows, reading.k, reading.num_targets, reading.drop_seen)
    model.config = configured
    return results, beside


class FloatContent(PinRec):
    """A trained model that sees content as the encoder made it, not after INT8."""

    def __init__(self, trained: PinRec, vocabulary: Vocabulary, ids: NDArray[np.int64], content: Tensor) -> None:
        """Ids int64 [n], ascending; content float32 [n, D_sem]."""
        super().__init__(trained.config, vocabulary, content.size(1))
        self.load_state_dict(trained.state_dict())
        self._ids, self._content = torch.from_numpy(ids), content

    def item_vectors(self, item_ids: Tensor, content: Tensor, item_types: Tensor) -> Tensor:
        """As PinRec's; the content given is taken only for items that are not known."""
        rows = torch.searchsorted(self._ids, item_ids).clamp_max(len(self._ids) - 1)
        known = self._ids[rows] == item_ids
        return super().item_vectors(item_ids, torch.where(known[..., None], self._content[rows], content), item_types)


def mean_ndcg(scorer: Scorer, world: World, reading: Reading) -> dict[str, float]:
    """NDCG@k over the test users and half the width of its 95 % interval (normal)."""
    values = ndcg(scorer, world, world.parts.test, reading)
    return {"ndcg": float(values.mean()), "ndcg_half_width": float(1.96 * values.std() / len(values) ** 0.5)}


@torch.inference_mode()
def ndcg(scorer: Scorer, world: World, users: list[HeldOut], reading: Reading) -> NDArray[np.float64]:
    """NDCG@k of users with one target each and one query: float64 [U], 1 / log2(1 + rank) within k, else 0."""
    found = []
    for batch in batches_of(users, users_at_once(1, world.corpus)):
        scores = scorer(batch)
        if reading.drop_seen:
            drop_seen_items(scores, world.dataset, world.corpus, batch)
        columns, _ = target_columns(world.dataset, world.corpus, batch, 1)
        own = scores.gather(2, columns.clamp_min(0)[:, None])
        rank = (scores >= own).sum(dim=2)[:, 0].double()  # ties against the target, as in Eq. 6
        reached = (rank <= reading.k) & (own[:, 0, 0] > -torch.inf) & (columns[:, 0] >= 0)
        found.append(torch.where(reached, 1 / torch.log2(1 + rank), 0.0))
    return torch.cat(found).numpy()


def as_read(config: Config, reading: Reading) -> Config:
    """The model's configuration with the reading's generation plan."""
    changed: dict[str, Any] = {}
    if reading.offsets_per_step:
        changed["offsets_per_step"] = reading.offsets_per_step
    if reading.feed:
        changed["feed"] = reading.feed
    if reading.compression_threshold:
        changed["compression_threshold"] = reading.compression_threshold
    return replace(config, generate=replace(config.generate, **changed))


def users_of(world: World, reading: Reading) -> list[HeldOut]:
    """The protocol's test users; where a reading wants more targets, those whose history leaves room for them."""
    if max(len(user.targets) for user in world.parts.test) >= reading.num_targets:
        return world.parts.test
    rows = rows_of(world, world.parts.test)
    engaged = world.dataset.histories.count_by_user(world.dataset.target_outcomes >= 0)[rows]
    return held_out(world.dataset, rows[engaged >= reading.num_targets + _LEAST_HISTORY], reading.num_targets)


def rows_of(world: World, users: list[HeldOut]) -> NDArray[np.int64]:
    """The users' rows of the histories: int64 [U]."""
    starts = np.array([user.start for user in users], dtype=np.int64)
    return np.searchsorted(world.dataset.histories.offsets, starts, side="right") - 1
