"""Models to compare with, all on the same data path. `ALL` makes each of them from one configuration."""

from __future__ import annotations

from collections.abc import Callable

from pinrec_core.eval.baselines.base import Baseline
from pinrec_core.eval.baselines.config import BaselineConfig
from pinrec_core.eval.baselines.item_knn import ItemKNN
from pinrec_core.eval.baselines.pinnerformer import PinnerFormer, PinnerFormerNext
from pinrec_core.eval.baselines.popularity import Popularity
from pinrec_core.eval.baselines.sasrec import HSTU, SASRec
from pinrec_core.eval.baselines.tiger import Tiger
from pinrec_core.eval.baselines.two_tower import TwoTower

__all__ = ["ALL", "Baseline", "BaselineConfig"]

ALL: dict[str, Callable[[BaselineConfig], Baseline]] = {
    model.name: model for model in (Popularity, ItemKNN, TwoTower, SASRec, HSTU, PinnerFormer, PinnerFormerNext, Tiger)
}
"""By name."""
