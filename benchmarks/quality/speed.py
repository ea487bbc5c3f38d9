"""Training speed beside RecTools' SASRec: equal width, depth, length, loss and negatives, on this machine's CPU.

Each side is trained in a process of its own, one after the other in several rounds, and says how many sequences it saw
a second and its peak memory. Ours is uc with sampled softmax over uniform negatives alone; theirs is SASRec with the
same loss. RecTools draws its negatives for each position, ours are shared by a batch: a row meets as many either way.

    python -m benchmarks.quality.speed FOLDER       ours, in the process that `compare` starts
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.quality import peers
from benchmarks.quality.matrix import HEADLINE, Run, base_config
from benchmarks.quality.worlds import World, open_world

NEGATIVES, BATCH, EPOCHS = 128, 128, 2
_OURS = "ours.json"


def compare(datasets: Path, work: Path, max_users: int, rounds: int, threads: int) -> dict[str, Any]:
    """Examples/s and peak memory of both, medians over rounds, and the ratio of each round."""
    from benchmarks.quality.runs import peer_plan

    limits = (("max_steps", 0), ("max_train_users", max_users), ("peer_epochs", EPOCHS))
    run = Run(HEADLINE, "rectools/sasrec", 0, limits=limits)
    world = open_world(HEADLINE, datasets, work, limits)
    plan = {**peer_plan(run, depth=0), "patience": 0, "batch_size": BATCH, "n_negatives": NEGATIVES, "threads": threads}
    plan["n_factors"] = _width()
    results: dict[str, list[dict[str, float]]] = {"ours": [], "rectools": []}
    for round_ in range(rounds):
        folder = work / "speed" / str(round_)
        peers.write_exchange(folder, world.dataset, world.parts.train_events, world.parts.test[:1], plan)
        request = {"datasets": str(datasets), "work": str(work), "max_users": max_users, "threads": threads}
        (folder / "request.json").write_text(json.dumps(request))
        subprocess.run([sys.executable, "-m", "benchmarks.quality.speed", str(folder)], check=True)
        results["ours"].append(json.loads((folder / _OURS).read_text()))
        results["rectools"].append(peers.run_worker(folder))
    return _summary(results, plan)


def _summary(results: Mapping[str, list[dict[str, float]]], plan: Mapping[str, Any]) -> dict[str, Any]:
    pairs = zip(results["ours"], results["rectools"], strict=True)
    ratios = [ours["examples_per_second"] / theirs["examples_per_second"] for ours, theirs in pairs]
    medians = {
        f"{side} {name}": statistics.median(round_[name] for round_ in rounds)
        for side, rounds in results.items()
        for name in ("examples_per_second", "peak_rss_mib")
    }
    kept = ("n_factors", "n_blocks", "n_heads", "session_max_len", "batch_size", "n_negatives", "threads")
    return {**medians, "ratio": statistics.median(ratios), "ratios": ratios, **{name: plan[name] for name in kept}}


def _width() -> int:
    from pinrec_core.config import load_config

    return load_config(base_config(HEADLINE)).model.hidden_dim


def train_ours(world: World, epochs: int) -> dict[str, float]:
    """Train uc for `epochs` passes over the training users, and time it."""
    import torch

    from benchmarks.quality.runs import pinrec_config
    from pinrec_core.data.batches import BatchStream
    from pinrec_core.train.loop import Trainer

    config = pinrec_config(Run(HEADLINE, "uc", 0))
    config = replace(
        config,
        train=replace(
            config.train, batch_size=BATCH, random_negatives=NEGATIVES, in_batch_negatives=False, log_q=False
        ),
        targets=replace(config.targets, position_share=1.0),
        model=replace(config.model, use_content=False),
    )
    users = world.parts.train_rows
    steps = max(1, epochs * len(users) // BATCH)
    started = time.monotonic()
    trainer = Trainer(config, world.training, BatchStream(world.training, users, config), torch.device("cpu"))
    for step in range(steps):
        trainer.step(step)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"fit_seconds": seconds, "examples_per_second": steps * BATCH / seconds, "peak_rss_mib": peak}


def main(folder: Path) -> None:
    """Ours, alone in this process."""
    import torch

    request = json.loads((folder / "request.json").read_text())
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    limits = (("max_train_users", request["max_users"]),)
    world = open_world(HEADLINE, Path(request["datasets"]), Path(request["work"]), limits)
    measured = train_ours(world.for_variant("uc"), EPOCHS)
    (folder / _OURS).write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
