"""Peers that nobody here wrote: RecTools' models, trained in their own environment and scored by our metrics.

    python -m benchmarks.quality.peers setup      installs them into .tools/peers

RecTools needs numpy 1, so it cannot share an environment with the project. The two exchange Parquet: events in order
there, ranked items back. A rank becomes a score, so that Eq. 6 is counted by the same code for everyone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidConfig
from pinrec_core.eval.evaluate import Corpus, HeldOut

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".tools" / "peers"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKAGES = ("rectools[torch]==0.19.0", "pyarrow>=17,<20")  # a pyarrow that still takes numpy 1
MODELS = ("sasrec", "esasrec", "bert4rec", "hstu")


@click.group()
def cli() -> None:
    """The environment of the peers."""


@cli.command()
@click.option("--torch", "torch_requirement", default="torch==2.13.0", show_default=True)
def setup(torch_requirement: str) -> None:
    """Install RecTools and its torch into .tools/peers, once."""
    if is_installed():
        click.echo(f"{ENVIRONMENT} has them already")
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    # The plain CPU build first: what asks for torch later finds it there.
    for packages in ([torch_requirement], list(PACKAGES)):
        subprocess.run([str(PYTHON), "-m", "pip", "install", "--quiet", *packages], check=True)


def is_installed() -> bool:
    """Whether the peers' environment is there and whole."""
    if not PYTHON.exists():
        return False
    found = subprocess.run([str(PYTHON), "-c", "import rectools.models"], capture_output=True, check=False)
    return found.returncode == 0


def write_exchange(
    folder: Path,
    dataset: Dataset,
    training: NDArray[np.bool_],
    users: list[HeldOut],
    plan: Mapping[str, Any],
    validation: list[HeldOut] | None = None,
) -> None:
    """Write what the worker reads: the training events (bool [E] of the histories), the users' histories, the plan.

    Only target events are given, since the peers know no actions; users are numbered by their place in `users`.
    `validation`: held out right after what is trained of these users, for early stopping; else the worker takes some
    training events for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    h = dataset.histories
    is_target = dataset.target_outcomes >= 0
    of_user = np.repeat(h.user_ids, np.diff(h.offsets))
    rows = np.flatnonzero(training & is_target)
    if validation is not None:
        held_out = np.concatenate([user.targets for user in validation])
        rows = np.sort(np.concatenate([rows, held_out]))
        pq.write_table(pa.table({"user_id": of_user[held_out]}), folder / "validation.parquet")
    _write(folder / "train.parquet", of_user[rows], h.item_ids[rows], rows)
    kept = [u.start + np.flatnonzero(is_target[u.start : u.stop]) for u in users]
    places = np.concatenate([*kept, np.empty(0, np.int64)]).astype(np.int64)
    _write(folder / "histories.parquet", np.repeat(np.arange(len(users)), [len(k) for k in kept]),
           h.item_ids[places], places)  # fmt: skip
    (folder / "peer.json").write_text(json.dumps(dict(plan), indent=1))


def _write(path: Path, users: NDArray[np.int64], items: NDArray[np.int64], places: NDArray[np.int64]) -> None:
    pq.write_table(pa.table({"user_id": users.astype(np.int64), "item_id": items, "place": places}), path)


def run_worker(folder: Path) -> dict[str, Any]:
    """Train and rank in the peers' environment; what it measured. Raises InvalidConfig if that is missing or fails."""
    if not is_installed():
        raise InvalidConfig("the peers are not installed; allowed: after python -m benchmarks.quality.peers setup")
    log = folder / "peer.log"
    with log.open("wb") as output:
        worker = Path(__file__).with_name("peer_worker.py")
        done = subprocess.run([str(PYTHON), str(worker), str(folder)], stdout=output, stderr=output, check=False)
    if done.returncode:
        raise InvalidConfig(f"the peer failed with exit code {done.returncode}; its words are in {log}")
    measured: dict[str, Any] = json.loads((folder / "peer-metrics.json").read_text())
    return measured


class RankedScorer:
    """Scores the corpus by a peer's ranks: -rank, and -inf for what it did not rank. One query a user."""

    def __init__(self, path: Path, corpus: Corpus, users: list[HeldOut]) -> None:
        """`users` in the order in which `write_exchange` numbered them."""
        table = pq.read_table(path)
        rows = table["user_id"].to_numpy().astype(np.int64)
        order = np.argsort(rows, kind="stable")
        self._columns = corpus.columns(table["item_id"].to_numpy().astype(np.int64)[order])
        self._scores = -table["rank"].to_numpy().astype(np.float32)[order]
        self._offsets = np.searchsorted(rows[order], np.arange(len(users) + 1))
        self._row_of = {user.start: row for row, user in enumerate(users)}
        self._width = len(corpus.ids)

    def __call__(self, users: list[HeldOut]) -> Tensor:
        """Float32 [U, 1, N]."""
        scores = np.full((len(users), 1, self._width), -np.inf, dtype=np.float32)
        for place, user in enumerate(users):
            row = self._row_of[user.start]
            at = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
            known = self._columns[at] >= 0
            scores[place, 0, self._columns[at][known]] = self._scores[at][known]
        return torch.from_numpy(scores)


if __name__ == "__main__":
    cli()
