"""Sizes and schedule of the baselines: one frozen dataclass for all, so that a comparison changes one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pinrec_core.config import Config
from pinrec_core.errors import InvalidConfig


@dataclass(frozen=True)
class BaselineConfig:
    """What the baselines are trained with; a key that a baseline does not need is ignored by it."""

    dim: int = 128
    """Width of the transformers and length of the vectors."""
    num_layers: int = 2
    num_heads: int = 2
    max_history: int = 50
    """Longest history, in target events (item-kNN takes all of it)."""
    dropout: float = 0.2
    epochs: int = 40
    batch_size: int = 128
    """Histories a step."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    num_negatives: int = 1_024
    """Uniform negatives, drawn once a step for all its rows; 0 = cross-entropy over the whole corpus."""
    eval_every: int = 5
    """Epochs between validations, where `fit` is given something to validate with."""
    patience: int = 3
    """Validations in a row without a better one before training stops; 0 = never."""
    neighbours: int = 200
    """item-kNN: most similar items kept an item."""
    shrinkage: float = 10.0
    """item-kNN: users added to each cosine's denominator, so that rare pairs count less."""
    horizon: int = 8
    """PinnerFormer: targets ahead among which a position's positives lie."""
    codebooks: int = 3
    """TIGER: residual codebooks; one more code tells colliding items apart."""
    codes: int = 256
    """TIGER: codes of a codebook, a power of two."""
    semantic_source: Literal["auto", "content", "sasrec"] = "auto"
    """TIGER: what is quantized, the items' content or the item vectors of a SASRec trained first.

    `auto`: content where at least half of the pins have some.
    """
    beams: int = 100
    """TIGER: items that beam search returns."""
    seed: int = 0
    device: str = "cpu"
    pinrec: Config = field(default_factory=Config)
    """PinnerFormer: the run that it is compared with, whose network, negatives and steps it takes."""

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            "dim": 1, "num_layers": 1, "num_heads": 1, "max_history": 1, "dropout": 0, "epochs": 1, "batch_size": 1,
            "learning_rate": 0, "weight_decay": 0, "num_negatives": 0, "eval_every": 1, "patience": 0, "neighbours": 1,
            "shrinkage": 0, "horizon": 1, "codebooks": 1, "codes": 2, "beams": 1, "seed": 0,
        }  # fmt: skip
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise InvalidConfig(f"baseline {name} has value {getattr(self, name)!r}; allowed: at least {low}")
        if self.dim % self.num_heads:
            raise InvalidConfig(f"baseline dim has value {self.dim!r}; allowed: a multiple of num_heads")
        if self.codes & (self.codes - 1):
            raise InvalidConfig(f"baseline codes has value {self.codes!r}; allowed: a power of two")
