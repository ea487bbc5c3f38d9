"""What is run: every model that a table needs, on which data, with which seed, and how it is read.

A `Run` is one trained model; a `Reading` is one way to measure it (budget, dropped items, generation plan). Tables name
runs by group, and equal runs of two groups are trained once. Nothing here looks at results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from pinrec_core.tables import read_toml

Scalar: TypeAlias = str | int | float | bool
Settings: TypeAlias = tuple[tuple[str, Scalar], ...]

STEPS_SCALE = "scale.steps"
"""The setting that multiplies a run's updates."""
LONGER = 3.0
"""Of the updates, for the comparison near convergence."""

HEADLINE, STRICT = "kuairand-headline", "kuairand-strict"
RETAILROCKET = "retailrocket"
BEAUTY = "beauty"
BEAUTY_REFIT = "beauty-refit"
"""The same where the validation items of nine users in ten are trained."""
BEAUTY_SHUFFLED = "beauty-shuffled"
"""The same with the events of a user's day in another order: times are days."""
NUM_TARGETS = {HEADLINE: 8, STRICT: 4, RETAILROCKET: 8, BEAUTY: 1, BEAUTY_REFIT: 1, BEAUTY_SHUFFLED: 1}
"""Delta of each world's protocol."""
KEEPS_SEEN = frozenset({RETAILROCKET})
"""Worlds whose users come back to what they have seen, to buy it: there the headline reading drops nothing."""
STORED, ANEW, PUBLISHED, REFIT = "ties as stored", "ties shuffled", "published sizes", "validation items trained"
"""How rows of Beauty are told apart."""
VARIANTS = ("uc", "oc", "mt_oc")
OUTCOMES = {HEADLINE: ("like", "long_view", "click"), RETAILROCKET: ("buy", "cart", "view")}
"""What Figure 4 asks for, strongest first."""
BASELINES = ("popularity", "item_knn", "two_tower", "sasrec", "hstu", "pinnerformer", "pinnerformer_next", "tiger")
OF_PINREC = (*VARIANTS, "pinnerformer", "pinnerformer_next")
"""Made of PinRec's embedder, decoder and head."""
PEER_KEYS = ("num_layers", "num_heads", "max_history")
"""Of a base configuration's model: what a peer has in common with it."""
PEERS = ("rectools/sasrec", "rectools/esasrec", "rectools/bert4rec", "rectools/hstu")
AS_PUBLISHED: Settings = (("peer.n_factors", 256), ("peer.n_negatives", 256), ("peer.validation", "given"))
"""What published figures on Beauty were trained with and other peers here are not: width, negatives, no training event
lost to early stopping (blondered/transformer_benchmark)."""
ONE_LAYER: Mapping[str, Scalar] = {
    "model.skips": True, "model.id_layers": 1, "model.embedder_layers": 1, "model.head_layers": 1,
}  # fmt: skip
"""Where most items have few events: no MLP around the decoder (docs/studies.md)."""
UC_ON_BEAUTY: Mapping[str, Scalar] = {
    **ONE_LAYER, "train.random_negatives": 4_096, STEPS_SCALE: 1.2, "train.eval_every": 3_000,
}  # fmt: skip
"""The best on validation users; what has MLPs learns its users by heart sooner and gains nothing by more negatives.

Validated at the end alone: from step 1,500 on what is gained is less than what 4,473 users can tell.
"""
ON_RETAILROCKET: Mapping[str, Scalar] = {
    **ONE_LAYER, "model.use_time": False, "train.learning_rate": 1e-3, STEPS_SCALE: 0.15, "train.eval_every": 50,
}  # fmt: skip
"""631 users train: what is made of PinRec's parts knows them by heart after a few hundred steps, sooner where it sees
the time."""
WITH_MLPS = "uc with MLPs"
"""The row of Beauty that shows what `UC_ON_BEAUTY` is worth."""
BESIDE: Mapping[str, frozenset[str]] = {
    "headline": frozenset({"hstu", "tiger", *PEERS}),
    "longer": frozenset({"pinnerformer", "pinnerformer_next"}),
    "strict": frozenset({*BASELINES, *PEERS}),
    "retailrocket": frozenset({*BASELINES, *PEERS}),
    "beauty": frozenset({"popularity", "rectools/esasrec", "rectools/bert4rec", "rectools/hstu"}),
}
"""Models of a table that are trained with one seed: they stand beside a claim, none rests on their spread."""


@dataclass(frozen=True)
class Reading:
    """One way to measure a trained model."""

    conditioning: str = "true"
    """Where oc and mt_oc take their budget from: `true` outcomes of the targets, `past`, or the one outcome named."""
    drop_seen: bool = True
    k: int = 10
    num_targets: int = 8
    """Targets held out for each user, and embeddings generated."""
    offsets_per_step: int = 0
    """Of the rollout; 0 = as the model is configured."""
    feed: str = ""
    """What is fed back; empty = as the model is configured."""
    float_content: bool = False
    """Content as the encoder made it instead of after INT8."""
    compression_threshold: float = 0.0
    """Above 0: what would be served after compression at this cosine, instead of Eq. 6."""

    @property
    def key(self) -> str:
        """Names the reading's file."""
        return _digest(asdict(self))


def headline(world: str) -> Reading:
    """As the paper reads: conditioned on the true outcomes, top 10 of each embedding."""
    return Reading(num_targets=NUM_TARGETS[world], drop_seen=world not in KEEPS_SEEN)


@dataclass(frozen=True)
class Run:
    """One trained model."""

    world: str
    model: str
    """uc, oc or mt_oc, a baseline, or `rectools/<model>`."""
    seed: int
    settings: Settings = ()
    """Dotted configuration keys and their values, sorted; what differs from the world's base configuration."""
    limits: Settings = ()
    """Of the size: steps, users; a smaller bench never passes for a larger one. And which base configuration it was."""

    @property
    def key(self) -> str:
        """Names the run's folder: equal runs of two tables share it."""
        return _digest(asdict(self))

    @property
    def is_pinrec(self) -> bool:
        """Whether it is a variant of PinRec."""
        return self.model in VARIANTS

    @property
    def is_peer(self) -> bool:
        """Whether somebody else's library trains it."""
        return self.model.startswith("rectools/")


@dataclass(frozen=True)
class Job:
    """A run and the readings that one table wants of it."""

    group: str
    """Which table."""
    label: str
    """Its row there."""
    run: Run
    readings: tuple[Reading, ...]


@dataclass(frozen=True)
class Size:
    """How much of the matrix is run, on how much data."""

    name: str
    seeds: tuple[int, ...]
    max_train_users: int
    """0 = all."""
    max_test_users: int
    """0 = all."""
    max_steps: int
    """PinRec's updates of `train.batch_size` users; the baselines see as many sequences. 0 = the configuration's."""
    peer_epochs: int
    """Passes of a peer over the training users."""
    groups: tuple[str, ...]
    models: tuple[str, ...]
    ablations: tuple[str, ...]
    """Labels; empty = all."""
    steering_steps: int
    """Updates on the synthetic world; 0 = the configuration's."""


ALL_GROUPS = ("headline", "longer", "strict", "retailrocket", "beauty", "figure5", "ablations", "recency", "speed")
SIZES = {
    "full": Size("full", (0, 1, 2), 0, 0, 0, 100, ALL_GROUPS, (*VARIANTS, *BASELINES, *PEERS), (), 0),
    "small": Size(
        "small", (0,), 3_000, 1_000, 200, 3, ("headline", "beauty", "figure5", "ablations", "speed"),
        (*VARIANTS, "popularity", "item_knn", "sasrec", "pinnerformer", "rectools/sasrec"),
        ("logQ off", "ID embedding off", "content off"), 200,
    ),
    "smoke": Size(
        "smoke", (0,), 300, 100, 20, 1, ("headline", "beauty", "figure5", "ablations", "speed"),
        (*VARIANTS, "popularity", "rectools/sasrec"), ("logQ off",), 20,
    ),
}  # fmt: skip
"""`full` takes hours; `small` under a quarter of an hour on two cores; `smoke` shows that everything runs."""


ABLATIONS: Mapping[str, Mapping[str, Scalar]] = {
    "logQ off": {"train.log_q": False},
    "random negatives 0": {"train.random_negatives": 0},
    "random negatives x 1/4": {"train.random_negatives": 128},
    "random negatives x 4": {"train.random_negatives": 2048},
    "in-batch negatives off": {"train.in_batch_negatives": False},
    "in-batch scale / 4, equal tokens": {"train.batch_size": 16, STEPS_SCALE: 4.0},
    "in-batch scale x 4, equal tokens": {"train.batch_size": 256, STEPS_SCALE: 0.25},
    "ID embedding off": {"model.use_ids": False},
    "1 hash": {"model.num_hashes": 1},
    "4 hashes": {"model.num_hashes": 4},
    "1,000 rows a hash table": {"model.hash_rows": 1_000},
    "content off": {"model.use_content": False},
    "window 1": {"targets.window_size": 1, "targets.max_offset": 1, "generate.offsets_per_step": 1},
    "window 2": {"targets.window_size": 2, "targets.max_offset": 2, "generate.offsets_per_step": 2},
    "window 4": {"targets.window_size": 4, "targets.max_offset": 4, "generate.offsets_per_step": 4},
    "window of any outcome": {"targets.same_outcome": False},
    "min over the window (Eq. 5), by similarity": {"targets.window_pick": "similarity"},
    "min over the window (Eq. 5), by loss": {"targets.window_pick": "loss"},
    "surface and time inputs off": {"model.use_surface": False, "model.use_time": False},
    "surface in Phi off": {"model.surface_in_conditioning": False},
    "linear paths beside the MLPs": {"model.skips": True},
}
"""Each a row: what is changed in mt_oc (window 8)."""
CLAIMED_ABLATION = "ID embedding off"
"""Trained with all seeds; the other rows with one."""
CONTENT_ALONE = "uc, content alone"
"""The same of uc, a row of Table 1: the paper does not say which variant its gain is of."""

READING_ABLATIONS: Mapping[str, Mapping[str, Any]] = {
    "float content instead of INT8": {"float_content": True},
    "8 steps x 1 offset": {"offsets_per_step": 1},
    "4 steps x 2 offsets": {"offsets_per_step": 2},
    "2 steps x 4 offsets": {"offsets_per_step": 4},
    "2 steps x 4 offsets, F = 1 fed token": {"offsets_per_step": 4, "feed": "first"},
    "served, no compression": {"compression_threshold": 1.0},
    "served, compression at .95": {"compression_threshold": 0.95},
    "served, compression at .9": {"compression_threshold": 0.9},
    "served, compression at .8": {"compression_threshold": 0.8},
}
"""Rows that read the trained mt_oc in another way."""

FIGURE5_TOTAL = 16
FIGURE5_OFFSETS = (1, 2, 4, 8, 16)
"""Embeddings a step; FIGURE5_TOTAL / offsets steps."""
_FIGURE5: Mapping[str, Scalar] = {
    "targets.window_size": 16, "targets.max_offset": 16, "generate.offsets_per_step": 16, "generate.num_steps": 1,
}  # fmt: skip


def base_config(world: str) -> Path:
    """The configuration that every run on a world starts from."""
    return Path(__file__).with_name("beauty.toml" if world.startswith("beauty") else "kuairand.toml")


def jobs_of(size: Size) -> list[Job]:
    """Everything that a size runs, in order."""
    builders = {
        "headline": lambda: [*_comparison(size, "headline", HEADLINE), *_content_alone(size)],
        "longer": lambda: _comparison(size, "longer", HEADLINE, OF_PINREC, {STEPS_SCALE: LONGER}),
        "strict": lambda: _comparison(size, "strict", STRICT, (*VARIANTS, *BASELINES, PEERS[0])),
        "retailrocket": lambda: _comparison(
            size, "retailrocket", RETAILROCKET, (*VARIANTS, *BASELINES, PEERS[0]), ON_RETAILROCKET
        ),
        "beauty": lambda: _beauty(size),
        "figure5": lambda: _figure5(size),
        "ablations": lambda: _ablations(size),
    }
    return [job for group in size.groups if group in builders for job in builders[group]()]


def _run(size: Size, world: str, model: str, seed: int, settings: Mapping[str, Scalar] | None = None) -> Run:
    limits: dict[str, Scalar] = {
        "max_train_users": size.max_train_users,
        "max_test_users": size.max_test_users,
        "max_steps": size.max_steps,
        "base": _base_digest(world, model.startswith("rectools/")),
    }
    if model.startswith("rectools/"):
        limits["peer_epochs"] = size.peer_epochs
    return Run(world, model, seed, tuple(sorted((settings or {}).items())), tuple(sorted(limits.items())))


def _comparison(
    size: Size,
    group: str,
    world: str,
    only: tuple[str, ...] = (),
    settings: Mapping[str, Scalar] | None = None,
) -> list[Job]:
    """Table 1, and Figure 4 where the world has outcomes: PinRec's variants, baselines and peers on one split.

    `settings` are of what is made of PinRec's parts.
    """
    jobs = []
    for model in (model for model in size.models if not only or model in only):
        readings = _pinrec_readings(model, world) if model in VARIANTS else _one_vector_readings(world)
        seeds = _seeds(size, group, model)
        own = settings if model in OF_PINREC else None
        jobs += [Job(group, model, _run(size, world, model, seed, own), readings) for seed in seeds]
    return jobs


def _content_alone(size: Size) -> list[Job]:
    """Of sizes that have all ablations."""
    seeds = size.seeds if "uc" in size.models and not size.ablations else ()
    runs = [_run(size, HEADLINE, "uc", seed, ABLATIONS[CLAIMED_ABLATION]) for seed in seeds]
    return [Job("headline", CONTENT_ALONE, run, (headline(HEADLINE),)) for run in runs]


def _seeds(size: Size, group: str, model: str) -> tuple[int, ...]:
    return size.seeds[:1] if model in BESIDE[group] else size.seeds


def _pinrec_readings(model: str, world: str) -> tuple[Reading, ...]:
    """As the paper conditions, by the past mix, and each outcome alone; seen items dropped and not."""
    base = headline(world)
    readings = [base, replace(base, drop_seen=not base.drop_seen)]
    if model != "uc":
        only = [replace(base, conditioning=outcome) for outcome in OUTCOMES.get(world, ())]
        readings += [replace(base, conditioning="past"), *only]
    return tuple(readings)


def _one_vector_readings(world: str) -> tuple[Reading, ...]:
    """Top k, and as many items as PinRec's embeddings can retrieve at best."""
    base = headline(world)
    many = replace(base, k=base.k * base.num_targets)
    return tuple(dict.fromkeys((base, many, replace(many, drop_seen=not base.drop_seen))))


def _beauty(size: Size) -> list[Job]:
    """Leave-one-out, full ranking, ties as they are stored; for what a claim rests on also shuffled, and with
    validation items trained.

    Seen items dropped, as the published figures have it (nobody reviews an item twice), and kept.
    """
    readings = tuple(Reading(num_targets=1, drop_seen=dropped) for dropped in (True, False))
    models = [m for m in size.models if m == "uc" or m == "sasrec" or m == "popularity" or m.startswith("rectools/")]
    ways = {BEAUTY: STORED, BEAUTY_REFIT: REFIT, BEAUTY_SHUFFLED: ANEW}
    beside: list[Job] = []
    if len(size.seeds) > 1:
        wide = _run(size, BEAUTY, PEERS[0], size.seeds[0], dict(AS_PUBLISHED))
        beside += [Job("beauty", f"{PEERS[0]}, {PUBLISHED}", wide, readings)]
        with_mlps = [_run(size, BEAUTY, "uc", seed) for seed in size.seeds]
        beside += [Job("beauty", f"{WITH_MLPS}, {STORED}", run, readings) for run in with_mlps]
    return beside + [
        Job("beauty", f"{model}, {way}", run, readings)
        for world, way in ways.items()
        if world == BEAUTY or len(size.seeds) > 1
        for model in models
        if world == BEAUTY or model not in BESIDE["beauty"]
        for seed in (_seeds(size, "beauty", model) if world == BEAUTY else size.seeds[:1])
        for run in (_run(size, world, model, seed, UC_ON_BEAUTY if model == "uc" else None),)
    ]


def _figure5(size: Size) -> list[Job]:
    """One model that knows 16 offsets, read with 1 to 16 embeddings a step."""
    readings = tuple(Reading(num_targets=FIGURE5_TOTAL, offsets_per_step=offsets) for offsets in FIGURE5_OFFSETS)
    return [
        Job("figure5", "mt_oc, window 16", _run(size, HEADLINE, "mt_oc", seed, _FIGURE5), readings)
        for seed in size.seeds
    ]


def _ablations(size: Size) -> list[Job]:
    """mt_oc with one thing changed."""
    jobs = []
    reading = headline(HEADLINE)
    for label, settings in ABLATIONS.items():
        if size.ablations and label not in size.ablations:
            continue
        seeds = size.seeds if label == CLAIMED_ABLATION else size.seeds[:1]
        jobs += [Job("ablations", label, _run(size, HEADLINE, "mt_oc", seed, settings), (reading,)) for seed in seeds]
    for label, changed in READING_ABLATIONS.items():
        read = replace(reading, **changed)
        jobs += [Job("ablations", label, _run(size, HEADLINE, "mt_oc", seed), (read,)) for seed in size.seeds]
    return jobs


@cache
def _base_digest(world: str, for_peer: bool) -> str:
    """Another base configuration makes other runs; its comments do not, nor what a peer takes nothing of."""
    values = read_toml(base_config(world), "config file")
    return _digest({key: values["model"][key] for key in PEER_KEYS} if for_peer else values)


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
