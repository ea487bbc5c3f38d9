"""A small trained-nowhere world on disk, which the end-to-end tests serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.chaos.world import World as ChaosWorld
from benchmarks.chaos.world import make_world
from pinrec_core.batch_job.job import build_batch_view
from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import ServingState, write_serving_state
from pinrec_core.train.export import export

CONFIG = {
    "model": {
        "num_layers": 1,
        "hidden_dim": 32,
        "num_heads": 2,
        "embedding_dim": 16,
        "id_dim": 8,
        "hash_rows": 100,
        "hash_dim": 8,
        "max_history": 12,
    },
    "generate": {"num_steps": 2, "offsets_per_step": 2},
    "retrieve": {"popular_per_list": 50},
}


@dataclass(frozen=True)
class World:
    """Two good releases and a third with a broken file; release 1 is active at first."""

    releases: Path
    batch_view: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("triton")
    config = config_from_dict(CONFIG)
    SyntheticWorld(SyntheticSpec(users=40, items=300, events=2_000)).write(root / "data")
    dataset = open_dataset(root / "data", config)
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        model = PinRec(config, dataset.vocabulary, dataset.items.content.shape[1])
        export(model, dataset, root / "releases")
    weights = root / "releases" / "3" / "decoder.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    write_serving_state(root / "releases", ServingState(1, (1,)))
    build_batch_view(root / "data", root / "view")
    return World(root / "releases", root / "view")


@pytest.fixture(scope="session")
def chaos_world(tmp_path_factory) -> ChaosWorld:
    """What `make chaos` serves."""
    return make_world(tmp_path_factory.mktemp("chaos") / "world")
