"""The data: public logs in the contract, their fixed protocols, and what training may see of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality import matrix
from pinrec_core.config import Config, load_config
from pinrec_core.data.dataset import Dataset, open_dataset
from pinrec_core.data.histories import Histories
from pinrec_core.data.readers import amazon, kuairand, retailrocket
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.evaluate import Corpus, HeldOut, train_frequency
from pinrec_core.eval.protocols import (
    KUAIRAND_CUT_MS,
    Parts,
    disjoint_in_time,
    disjoint_users,
    leave_one_out,
)
from pinrec_core.release import ItemTable
from pinrec_core.schema import ItemType

SPLIT_SEED = 0
"""Users are split once; the seeds of a table train anew on the same split, so that intervals pair users."""
_BUYER_ENGAGEMENTS, _BUYER_SHARES = 10, (0.6, 0.1, 0.3)
"""Of RetailRocket's few buyers; a test user's own last engagements in time are the targets. With fewer users or targets
there are no 300 of each outcome."""
_REFIT_VALIDATION_EVERY = 10
"""Of Beauty's users, where the others' validation items are trained: what one more event of nine is worth."""
_TIES_SEED = 0
_SAMPLE_STREAM = 7
"""Keeps the draw of a smaller bench's users apart from other random numbers."""


@dataclass(frozen=True)
class World:
    """One log under one protocol."""

    dataset: Dataset
    """All users; `items` holds only pins with an event, which are the corpus."""
    parts: Parts
    folder: Path
    """The log in the contract."""

    @cached_property
    def corpus(self) -> Corpus:
        """Every pin with an event."""
        return Corpus.of(self.dataset)

    @cached_property
    def training(self) -> Dataset:
        """What training may see; rows of users are those of `dataset`."""
        return self.parts.training_data(self.dataset)

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """Engagements of training with each item: int64 [N]."""
        return train_frequency(self.training, self.corpus, self.parts.train_rows)

    def for_variant(self, variant: str) -> World:
        """The same with the vocabulary of uc (no outcomes) or of the others."""
        vocabulary = replace(self.dataset.vocabulary, unconditioned=variant == "uc")
        return replace(self, dataset=replace(self.dataset, vocabulary=vocabulary))

    def float_content(self) -> Tensor:
        """Content of `dataset.items` before INT8, zero where an item has no text: float32 [n, D_sem]."""
        table = pq.read_table(self.folder / "items.parquet", columns=["item_id", "text"])
        texts = dict(zip(table["item_id"].to_pylist(), table["text"].to_pylist(), strict=True))
        words = [texts.get(item) or "" for item in self.dataset.items.ids.tolist()]
        rows = self.dataset.text_encoder.encode(words)
        rows[[not word for word in words]] = 0.0
        return torch.from_numpy(rows.astype(np.float32))


def open_world(name: str, datasets: Path, work: Path, limits: matrix.Settings = ()) -> World:
    """Convert (once, under `work`), open and split. Raises InvalidConfig for an unknown name, InvalidData for bad data.

    `limits` may hold `max_train_users` and `max_test_users`: users drawn at random, the same each time.
    """
    folder = _converted(name, datasets, work)
    config = load_config(matrix.base_config(name))
    dataset = with_events_only(open_dataset(folder, config))
    parts = _parts(name, dataset)
    return World(dataset, _limited(parts, dict(limits), dataset.histories), folder)


def training_config(config: Config) -> Config:
    """Whoever is in the training data set trains: the protocol has split the users already."""
    return replace(config, data=replace(config.data, test_share=0.0, validation_share=0.0, min_history=1))


def with_events_only(dataset: Dataset) -> Dataset:
    """Without the pins that nobody engaged with: the protocol's corpus is every pin with an event."""
    items = dataset.items
    kept = (items.types != ItemType.PIN) | np.isin(items.ids, dataset.histories.item_ids)
    table = ItemTable(items.ids[kept], items.types[kept], items.content[kept], items.scale[kept])
    return replace(dataset, items=table)


def _parts(name: str, dataset: Dataset) -> Parts:
    targets = matrix.NUM_TARGETS[name]
    makers: dict[str, Callable[[], Parts]] = {
        matrix.HEADLINE: lambda: disjoint_users(dataset, seed=SPLIT_SEED, num_targets=targets),
        matrix.STRICT: lambda: disjoint_in_time(dataset, KUAIRAND_CUT_MS, num_targets=targets),
        matrix.RETAILROCKET: lambda: disjoint_users(
            dataset, SPLIT_SEED, _BUYER_ENGAGEMENTS, targets, shares=_BUYER_SHARES
        ),
        **dict.fromkeys((matrix.BEAUTY, matrix.BEAUTY_SHUFFLED), lambda: leave_one_out(dataset)),
        matrix.BEAUTY_REFIT: lambda: leave_one_out(dataset, _REFIT_VALIDATION_EVERY),
    }
    return makers[name]()


def _log_of(name: str) -> str:
    return next((log for log in ("kuairand", "retailrocket", "beauty") if name.startswith(log)), name)


def _converted(name: str, datasets: Path, work: Path) -> Path:
    """The log in the contract, under `work`. Raises InvalidConfig if no reader knows the name."""
    shuffled = name == matrix.BEAUTY_SHUFFLED
    readers: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
        "kuairand": ("kuairand-pure", kuairand.convert),
        "retailrocket": ("retailrocket-mb", retailrocket.convert),
        "beauty": ("amazon-beauty", partial(amazon.convert, shuffle_ties=_TIES_SEED if shuffled else None)),
    }
    log = _log_of(name)
    if log not in readers:
        raise InvalidConfig(f"world has value {name!r}; allowed: {list(matrix.NUM_TARGETS)}")
    source, convert = readers[log]
    folder = work / "data" / (name if shuffled else log)
    if not (folder / "dataset.json").exists():
        convert(datasets / source, folder)
    return folder


def _limited(parts: Parts, limits: dict[str, matrix.Scalar], histories: Histories) -> Parts:
    """Fewer users where a smaller bench says so."""
    most_train, most_test = int(limits.get("max_train_users", 0)), int(limits.get("max_test_users", 0))
    train, events = parts.train_rows, parts.train_events
    if most_train and len(train) > most_train:
        train = np.sort(np.random.default_rng(_SAMPLE_STREAM).choice(train, most_train, replace=False))
        chosen = np.zeros(histories.num_users, dtype=np.bool_)
        chosen[train] = True
        events = events & np.repeat(chosen, np.diff(histories.offsets))
    validation, test = _some(parts.validation, most_test), _some(parts.test, most_test)
    return replace(parts, train_rows=train, train_events=events, validation=validation, test=test)


def _some(users: list[HeldOut], most: int) -> list[HeldOut]:
    if not most or len(users) <= most:
        return users
    chosen = np.random.default_rng(_SAMPLE_STREAM).choice(len(users), most, replace=False)
    return [users[at] for at in np.sort(chosen)]
