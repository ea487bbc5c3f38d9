"""Configuration: one frozen dataclass a part, read from TOML. An unknown key is an error that lists the known ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pinrec_core.errors import InvalidConfig
from pinrec_core.tables import build, read_toml

Variant = Literal["uc", "oc", "mt_oc"]


@dataclass(frozen=True)
class DataConfig:
    """How a folder in the event-log contract becomes histories."""

    outcomes: tuple[str, ...] = ()
    """Engagements that make targets, in outcome order; empty = what the folder's dataset.json says."""
    content_dim: int = 64
    """D_sem of the text encoder, where items come without an embedding."""
    min_history: int = 2
    """Users with fewer target events are left out of training and evaluation (they are still served)."""
    test_share: float = 0.1
    """Share of users held out for the offline metrics (users are disjoint; paper, section 5.1)."""
    validation_share: float = 0.05
    """Share of users held out for early stopping."""
    split_seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the network (paper, sections 4.1 and 4.2)."""

    variant: Variant = "mt_oc"
    num_layers: int = 2
    num_heads: int = 4
    hidden_dim: int = 128
    """Width of the decoder."""
    block: Literal["gpt2", "hstu"] = "gpt2"
    """The decoder's layers: GPT-2's (the paper's), or HSTU's pointwise attention with gating."""
    embedding_dim: int = 64
    """D: item and generated embeddings."""
    id_dim: int = 64
    """D_id: output of the ID embedder."""
    num_hashes: int = 2
    hash_rows: int = 20_000
    """Rows of each hash table (num_hashes tables)."""
    hash_dim: int = 32
    """Width of a hash table's row."""
    id_layers: int = 2
    """Fully connected layers between a hash table's rows and the ID embedding (1 to 3; the paper's is an MLP)."""
    embedder_layers: int = 2
    """Fully connected layers of an item embedder (1 to 3; the paper has 2 or 3).

    With one here and in the ID embedder an item's vector is a linear map of its content and table rows, as good as
    free: better where there are too few events an item to learn more.
    """
    head_layers: int = 2
    """Fully connected layers of the output head; with one, Phi is added to the hidden state."""
    skips: bool = False
    """Whether the MLPs of item embedders, ID embedder and output head get a linear path beside them (not the paper's).

    At first an item is then the sum of its content and its table rows, and what is predicted is the item before; the
    MLPs start at 0; what has one layer is that path. Worth having where there are few events an item: nothing has to be
    learned before items are alike.
    """
    max_history: int = 100
    """Longest history, in events; the start token does not count."""
    dropout: float = 0.1
    surface_in_conditioning: bool = True
    """Whether Phi holds the target's surface (ours, not the paper's)."""
    use_content: bool = True
    use_ids: bool = True
    use_time: bool = True
    use_surface: bool = True
    """Whether a token's input holds its surface."""


@dataclass(frozen=True)
class TargetConfig:
    """Which future events a position is trained on (paper, section 4.3.2).

    `uc` and `oc` always use offset 1 and window 1.
    """

    max_offset: int = 8
    """Largest target offset t' - t, counted in target events."""
    window_size: int = 4
    """Delta: exactly Delta targets, half-open."""
    offsets_per_position: int = 2
    """Target offsets sampled for each position of a batch."""
    next_share: float = 0.25
    """Probability that a sampled offset is 1 (the rest is uniform over [1, max_offset])."""
    same_outcome: bool = True
    """Whether the window holds only targets of the conditioned outcome."""
    window_pick: Literal["one_to_one", "similarity", "loss"] = "one_to_one"
    """Which target of the window a row is trained on.

    `one_to_one`: the next `window_size` targets are one set; the first offsets of each outcome, as many as it has
    targets there, are matched to them one to one by similarity, so that no target is left out and no two embeddings of
    an outcome learn the same one. `similarity`, `loss`: Eq. 5's min over the window of each drawn offset, by the plain
    similarity or by the logQ-corrected loss; only these use `offsets_per_position` and `next_share`.
    """
    position_share: float = 1.0
    """Share of the positions of a batch that are trained, drawn anew each step."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    batch_size: int = 64
    """Users a step."""
    max_steps: int = 1_000
    max_minutes: float = 0.0
    """Stop after this many minutes whatever the step; 0 = no limit."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    random_negatives: int = 512
    in_batch_negatives: bool = True
    log_q: bool = True
    initial_logit_scale: float = 10.0
    max_logit_scale: float = 100.0
    action_dropout: float = 0.05
    """Probability that a token's action (independently: its surface) is masked, so that unknown codes are trained."""
    sketch_width: int = 65_536
    sketch_depth: int = 4
    eval_every: int = 200
    """Steps between validations; also between checkpoints."""
    patience: int = 5
    """Validations without a better unordered recall before training stops; 0 = never."""
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass(frozen=True)
class GenerateConfig:
    """The rollout (design: outcome branches that share the prefix)."""

    num_steps: int = 3
    """Autoregressive steps, prefill included."""
    offsets_per_step: int = 4
    """Embeddings a branch emits in a step; 1 for `uc` and `oc`."""
    feed: Literal["first", "block"] = "block"
    """What is fed back: the first offset's embedding, or the whole block."""
    compression_threshold: float = 0.9
    """Cosine above which an embedding is merged into an earlier one; 1 or more = never."""

    @property
    def num_fed(self) -> int:
        """F: tokens fed back to a branch in each decode step."""
        return self.offsets_per_step if self.feed == "block" else 1


@dataclass(frozen=True)
class RetrieveConfig:
    """The index and its search."""

    kind: Literal["auto", "flat", "ivf_hnsw"] = "auto"
    """`auto`: flat below 20,000 items."""
    codes: Literal["pq4", "sq8", "fp16", "float32"] = "pq4"
    """What cells hold of an item; `pq4`: 4 bits a dimension, ranked again by INT8 rows. A GPU takes the others."""
    nlist: int = 0
    """0 = from the corpus size."""
    nprobe: int = 0
    """0 = chosen at build for `recall_target`."""
    ef_search: int = 0
    """Of the graph that finds the cells to probe; 0 = chosen at build, which may leave the graph out."""
    recall_target: float = 0.98
    overfetch_factor: float = 4.0
    """Items that an embedding asks for at first, by those that it must place: its neighbours want many of the same."""
    popular_per_list: int = 1_000
    """Length of each popular list, for filling."""


@dataclass(frozen=True)
class ServeConfig:
    """Limits and defaults of the gateway."""

    max_candidates: int = 1_000
    default_deadline_ms: int = 1_000
    max_in_flight: int = 128
    """Requests in the ensemble at once. More than it needs: what a stall of half a second leaves behind is answered."""
    allocation: Literal["largest_remainder", "stochastic"] = "largest_remainder"
    max_excluded: int = 2_000
    max_batch: int = 256
    """Most requests in one BatchGetCandidates."""
    golden_overlap: float = 0.9
    """Share of the items expected by the golden requests that must come back before a release is activated.

    The same release answers almost alike on another machine: sums in another order swap items whose scores tie. Items
    that were added or deleted since the export move it too. Another model or index gives a third or less.
    """
    golden_p99_ms: float = 500.0
    """Longest p99 of the golden requests, one at a time beside the traffic; half of the default deadline."""


@dataclass(frozen=True)
class Config:
    """Everything that defines a run; saved with the checkpoint and the release."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    serve: ServeConfig = field(default_factory=ServeConfig)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def max_positions(self) -> int:
        """Start token + history + everything a branch may be fed."""
        return 1 + self.model.max_history + (self.generate.num_steps - 1) * self.generate.num_fed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON or TOML."""
        return asdict(self)


_LEAST: dict[str, dict[str, float]] = {
    "data": {"content_dim": 1, "min_history": 1, "test_share": 0, "validation_share": 0, "split_seed": 0},
    "model": {
        "num_layers": 1, "num_heads": 1, "hidden_dim": 1, "embedding_dim": 1, "id_dim": 1, "num_hashes": 1,
        "hash_rows": 1, "hash_dim": 1, "head_layers": 1, "max_history": 1, "dropout": 0,
    },
    "targets": {"offsets_per_position": 1, "window_size": 1},
    "train": {
        "batch_size": 1, "max_steps": 1, "max_minutes": 0, "learning_rate": 0, "warmup_steps": 0,
        "random_negatives": 0, "sketch_width": 1, "sketch_depth": 1, "eval_every": 1, "patience": 0, "seed": 0,
    },
    "generate": {"num_steps": 1},
    "retrieve": {"nlist": 0, "nprobe": 0, "ef_search": 0, "overfetch_factor": 1, "popular_per_list": 1},
    "serve": {
        "max_candidates": 1, "default_deadline_ms": 1, "max_in_flight": 1, "max_excluded": 0, "max_batch": 1,
        "golden_overlap": 0, "golden_p99_ms": 0,
    },
}  # fmt: skip
"""Smallest value of each number that has one."""


def _check(config: Config) -> None:
    for section, least in _LEAST.items():
        for name, low in least.items():
            value = getattr(getattr(config, section), name)
            if not value >= low:
                raise InvalidConfig(f"{section}.{name} has value {value!r}; allowed: at least {low}")
    m, g, t = config.model, config.generate, config.targets
    one_to_one = m.variant == "mt_oc" and t.window_pick == "one_to_one"
    rules: list[tuple[bool, str, object, str]] = [
        (m.hidden_dim % m.num_heads == 0, "model.hidden_dim", m.hidden_dim, f"a multiple of num_heads = {m.num_heads}"),
        (m.use_content or m.use_ids, "model.use_content", m.use_content, "true when use_ids is false"),
        (1 <= m.id_layers <= 3, "model.id_layers", m.id_layers, "1 to 3"),
        (1 <= m.embedder_layers <= 3, "model.embedder_layers", m.embedder_layers, "1 to 3"),
        (m.variant == "mt_oc" or g.offsets_per_step == 1, "generate.offsets_per_step", g.offsets_per_step,
         f"1 for variant {m.variant}"),
        (m.dropout < 1.0, "model.dropout", m.dropout, "below 1"),
        (len(set(config.data.outcomes)) == len(config.data.outcomes), "data.outcomes", config.data.outcomes,
         "each outcome once"),
        (1 <= g.offsets_per_step <= t.max_offset, "generate.offsets_per_step", g.offsets_per_step,
         f"1 to targets.max_offset = {t.max_offset}"),
        (not one_to_one or t.window_size <= t.max_offset, "targets.window_size", t.window_size,
         f"at most targets.max_offset = {t.max_offset} where window_pick is one_to_one"),
        (not one_to_one or g.offsets_per_step <= t.window_size, "generate.offsets_per_step",
         g.offsets_per_step, f"at most targets.window_size = {t.window_size}: one_to_one trains no later offset"),
        (0.0 < t.position_share <= 1.0, "targets.position_share", t.position_share, "in (0, 1]"),
        (0.0 < t.next_share <= 1.0, "targets.next_share", t.next_share, "in (0, 1]: offset 1 must be trained"),
        (config.data.test_share + config.data.validation_share < 1.0, "data.test_share", config.data.test_share,
         "test_share + validation_share below 1"),
    ]  # fmt: skip
    for ok, key, value, allowed in rules:
        if not ok:
            raise InvalidConfig(f"{key} has value {value!r}; allowed: {allowed}")


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a TOML file; `overrides` maps dotted keys ("train.max_steps") to values. Raises InvalidConfig."""
    values = read_toml(Path(path), "config file")
    for dotted, value in (overrides or {}).items():
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = value
    return config_from_dict(values)


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Inverse of `Config.to_dict`. Raises InvalidConfig naming the key, the value and what is allowed."""
    return build(Config, values)
