"""What is served while speed is measured: a trained model on a synthetic world of 10,000 to a million items.

python -m benchmarks.serving.world --work work/serving --scale 100k
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np

from pinrec_core.config import Config, load_config
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
from pinrec_core.release import Release, list_releases, open_release

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/serving.toml"
SPECS = {
    "10k": SyntheticSpec(users=4_000, items=10_000, events=600_000, days=60),
    "100k": SyntheticSpec(users=10_000, items=100_000, events=1_600_000, days=60),
    "1m": SyntheticSpec(users=100_000, items=1_000_000, events=10_000_000, days=60),
    "smoke": SyntheticSpec(users=400, items=2_000, events=60_000, days=60),
}
"""By scale. Histories of the first two and of the last are longer than the model reads (128 events) for most users."""
STEPS = {"10k": 400, "100k": 500, "1m": 500, "smoke": 20}
"""Updates of the model. With a tenth of them embeddings lie so close together that an index must scan a quarter of its
cells."""


@dataclass(frozen=True)
class ServingWorld:
    """Folders of an event log, of release 1 and of its batch views."""

    scale: str
    work: Path

    @property
    def spec(self) -> SyntheticSpec:
        """Sizes."""
        return SPECS[self.scale]

    @property
    def data(self) -> Path:
        """The event log."""
        return self.work / self.scale / "data"

    @property
    def releases(self) -> Path:
        """Holds release 1."""
        return self.work / self.scale / "releases"

    @property
    def batch_views(self) -> Path:
        """What the signal service follows."""
        return self.work / self.scale / "batch_views"

    @property
    def vectors(self) -> Path:
        """float32 [N, D]: the vectors that release 1's index was built from, in the order of its ids."""
        return self.work / self.scale / "vectors.npy"

    @property
    def queries(self) -> Path:
        """float32 [Q, D]: generated embeddings of users, to search with."""
        return self.work / self.scale / "queries.npy"

    def release(self) -> Release:
        """Release 1, opened without a look at its checksums."""
        return open_release(self.releases, 1, verify=False)


def config_of(scale: str) -> Config:
    """The reference workload's configuration, trained for as long as a scale says."""
    return load_config(CONFIG, {"train.max_steps": STEPS[scale], "train.eval_every": max(STEPS[scale] // 2, 1)})


def make_world(work: Path, scale: str) -> ServingWorld:
    """The world of a scale under `work`, made unless it is there: log, model, release, batch views, vectors."""
    world = ServingWorld(scale, work)
    if world.queries.exists():
        return world
    from pinrec_core.batch_job.job import build_batch_view
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.eval.evaluate import evaluate
    from pinrec_core.golden import add_golden
    from pinrec_core.model.id_embedding import IdEmbedder
    from pinrec_core.train.checkpoint import load_checkpoint
    from pinrec_core.train.export import export, generated_queries, index_vectors
    from pinrec_core.train.loop import train

    if not (world.data / "dataset.json").exists():
        SyntheticWorld(world.spec).write(world.data, progress=True)
    config = config_of(scale)
    dataset = open_dataset(world.data, config)
    run = work / scale / "run"
    if not (run / "metrics.json").exists():
        validation = dataset.split(config).validation[:200]
        train(config, dataset, run, lambda model: evaluate(model, dataset, validation), progress=True)
    model, _, _ = load_checkpoint(run)
    if not list_releases(world.releases):
        golden = partial(add_golden, titles=dataset.titles, request_time_ms=dataset.watermark_ms)
        export(model, dataset, world.releases, add_golden=golden)
    build_batch_view(world.data, world.batch_views)
    id_embedder = IdEmbedder.load(world.release().path)
    np.save(world.vectors, index_vectors(model, id_embedder, dataset.items, dataset.served_pins))
    np.save(world.queries, generated_queries(model, dataset))
    return world


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for worlds.")
@click.option("--scale", required=True, type=click.Choice(list(SPECS)))
def main(work: Path, scale: str) -> None:
    """Make a world, unless it is there."""
    make_world(work, scale)


if __name__ == "__main__":
    main()
