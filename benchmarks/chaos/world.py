"""A small synthetic world with two releases of untrained models: what fault tests serve; who is ranked is no matter."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pinrec_core.config import config_from_dict
from pinrec_core.release import list_releases
from services.cli.up import Stack, is_free

CONFIG = {
    "model": {"num_layers": 2, "hidden_dim": 64, "num_heads": 2, "embedding_dim": 32, "id_dim": 16, "hash_rows": 2_000},
    "generate": {"num_steps": 2, "offsets_per_step": 4},
    "serve": {"golden_p99_ms": 5_000.0},  # a switch under load is tried on machines that are busy with other things
}
USERS, ITEMS, EVENTS = 1_000, 5_000, 50_000
FIRST_PORT = 18_000


@dataclass(frozen=True)
class World:
    """Folders of an event log, its releases 1 and 2, and its batch views."""

    work: Path

    @property
    def data(self) -> Path:
        """The event log."""
        return self.work / "data"

    @property
    def releases(self) -> Path:
        """Releases 1 and 2."""
        return self.work / "releases"

    @property
    def batch_views(self) -> Path:
        """What the signal service follows."""
        return self.work / "batch_views"

    def stack(self, signals_data: Path) -> Stack:
        """The stack on this world, on free ports."""
        names = Stack(self.releases, signals_data, self.batch_views).ports()
        free = (port for port in range(FIRST_PORT, 60_000) if is_free("127.0.0.1", port))
        return Stack(self.releases, signals_data, self.batch_views, **{name: next(free) for name in names})


def make_world(work: Path) -> World:
    """The world under `work`, made unless it is there."""
    import torch

    from pinrec_core.batch_job.job import build_batch_view
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
    from pinrec_core.golden import add_golden
    from pinrec_core.model.pinrec import PinRec
    from pinrec_core.train.export import export

    world = World(work)
    if len(list_releases(world.releases)) >= 2:
        return world
    config = config_from_dict(CONFIG)
    SyntheticWorld(SyntheticSpec(users=USERS, items=ITEMS, events=EVENTS)).write(world.data)
    dataset = open_dataset(world.data, config)
    golden = partial(add_golden, titles=dataset.titles, request_time_ms=dataset.watermark_ms)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = PinRec(config, dataset.vocabulary, dataset.items.content.shape[1])
        export(model, dataset, world.releases, add_golden=golden)
    build_batch_view(world.data, world.batch_views)
    return world


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
