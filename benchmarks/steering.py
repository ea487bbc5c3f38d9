"""Does a budget steer, or only label? The paper's Figures 6 and 7, simulated on the synthetic world.

Trains uc, oc and mt_oc on the same seeded world and prints: unordered recall@10 of each (Eq. 6); for the conditioned
ones how the planted save and click rates of what they return move as the budget goes from clicks to saves; how many
items the two outcomes' lists share; and how often each variant covers both of two interleaved interests (paper,
appendix A.1). Every variant generates the same number of embeddings a request.

    python -m benchmarks.steering --work work/steering --report docs
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from pinrec_core.batch_job.job import build_batch_view
from pinrec_core.config import Config, load_config
from pinrec_core.data.dataset import Dataset, open_dataset
from pinrec_core.data.synthetic import OUTCOMES, SyntheticSpec, SyntheticWorld
from pinrec_core.eval.evaluate import evaluate
from pinrec_core.generate.budget import allocate, normalize
from pinrec_core.messages import CandidateRequest
from pinrec_core.recommend import Stages, recommend
from pinrec_core.release import open_release
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import MemoryHistoryStore
from pinrec_core.train.checkpoint import load_checkpoint
from pinrec_core.train.export import export
from pinrec_core.train.loop import train

ROOT = Path(__file__).resolve().parents[1]
SPEC = SyntheticSpec(users=3_000, items=2_000, events=150_000)
SAVE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
NUM_CANDIDATES = 40
EMBEDDINGS = 24
"""Generated a request by every variant, over all its branches."""
BATCH = 32
PROBES = 300
"""Users with two interleaved interests."""
PROBE_EVENTS = 16
RECENT = 4
"""The newest events of a probe are of one interest only, so that a recency bias shows."""
COVERED = 0.1
"""Share of the candidates that an interest needs to count as covered."""


@dataclass(frozen=True)
class Trained:
    """One variant, trained and opened for serving in this process."""

    variant: str
    config: Config
    dataset: Dataset
    stages: Stages
    recall: dict[str, float]
    world: SyntheticWorld
    now_ms: int

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What its budgets may name."""
        return self.dataset.vocabulary.outcomes


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for worlds, runs and releases.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for steering.json and steering.png.")
@click.option("--config", default=str(ROOT / "configs/synthetic.toml"), show_default=True, help="Base configuration.")
@click.option("--steps", default=0, help="Training steps; 0 = the configuration's.")
def main(work: Path, report: Path | None, config: str, steps: int) -> None:
    """Train the three variants and print the tables."""
    start = time.monotonic()
    world = SyntheticWorld(SPEC)
    if not (work / "data" / "dataset.json").exists():
        world.write(work / "data", progress=True)
    overrides: dict[str, float] = {"train.max_minutes": 0.0}  # equal steps for all, whatever the machine
    overrides |= {"train.max_steps": steps} if steps else {}
    base = load_config(config, overrides)
    trained = [prepare(variant, world, work, base) for variant in ("uc", "oc", "mt_oc")]
    results = {t.variant: measure(t) for t in trained}
    for line in table(results):
        click.echo(line)
    click.echo(f"\n{time.monotonic() - start:.0f} s in all")
    if report is not None:
        report.mkdir(parents=True, exist_ok=True)
        (report / "steering.json").write_text(json.dumps({"spec": vars(SPEC), "variants": results}, indent=1))
        plot(results, report / "steering.png")


def variant_config(base: Config, variant: str) -> Config:
    """The same sizes and steps for each variant, and the same number of generated embeddings."""
    branches = 1 if variant == "uc" else len(OUTCOMES)
    offsets = base.generate.offsets_per_step if variant == "mt_oc" else 1
    steps = EMBEDDINGS // (branches * offsets)
    generate = replace(base.generate, offsets_per_step=offsets, num_steps=steps)
    return replace(base, model=replace(base.model, variant=variant), generate=generate)  # type: ignore[arg-type]


def prepare(variant: str, world: SyntheticWorld, work: Path, base: Config) -> Trained:
    """Train (unless `work` has it), export and open a variant."""
    config, folder = variant_config(base, variant), work / variant
    dataset = open_dataset(work / "data", config)
    split = dataset.split(config)
    if not (folder / "run" / "metrics.json").exists():
        click.secho(f"training {variant}", bold=True)
        train(config, dataset, folder / "run", lambda model: evaluate(model, dataset, split.validation))
    model, config, _ = load_checkpoint(folder / "run")
    recall = evaluate(model, dataset, split.test)
    number = export(model, dataset, folder / "releases")
    build_batch_view(work / "data", folder / "view")
    store = MemoryHistoryStore()
    stages = Stages.open(open_release(folder / "releases", number), folder / "view", store)
    store.append([event for probe in range(PROBES) for event in probe_events(world, probe, dataset.watermark_ms)])
    return Trained(variant, config, dataset, stages, recall, world, dataset.watermark_ms + 3_600_000)


def measure(trained: Trained) -> dict[str, Any]:
    """Everything that is printed of one variant."""
    test_rows = trained.dataset.split(trained.config).test
    users = trained.dataset.histories.user_ids[test_rows]
    result: dict[str, Any] = {"recall": trained.recall, "covers_both_interests": coverage(trained)}
    if trained.variant == "uc":
        return result
    sweep = [ask(trained, users, {"save": share, "click": 1 - share}) for share in SAVE_SHARES]
    result["sweep"] = [
        {"save_share": share, **rates(trained, users, items)} for share, items in zip(SAVE_SHARES, sweep, strict=True)
    ]
    shared = [len(set(clicks) & set(saves)) / NUM_CANDIDATES for clicks, saves in zip(sweep[0], sweep[-1], strict=True)]
    result["shared_by_pure_budgets"] = float(np.mean(shared))
    return result


def ask(trained: Trained, users: NDArray[np.int64], budget: dict[str, float]) -> list[list[int]]:
    """Candidates of each user on the home surface."""
    vocabulary = trained.dataset.vocabulary
    weights = np.array([budget.get(outcome, 0.0) for outcome in trained.outcomes])
    counts = allocate(normalize(weights if weights.any() else np.ones(len(weights))), NUM_CANDIDATES)
    requests = [
        CandidateRequest(
            user_id=int(user),
            surface=vocabulary.surface_code("home"),
            counts=counts.astype(np.int32),
            search_query="",
            exclude_item_ids=np.array([-1], np.int64),
            include_seen=False,
            request_time_ms=trained.now_ms,
            release=1,
            remaining_ms=60_000,
        )
        for user in users
    ]
    answers = []
    for first in range(0, len(requests), BATCH):
        answers += recommend(requests[first : first + BATCH], trained.stages)
    return [answer.candidates.candidate_ids.tolist() for answer in answers]


def rates(trained: Trained, users: NDArray[np.int64], items: list[list[int]]) -> dict[str, float]:
    """Mean planted rate of each outcome over what was returned: what an A/B test would measure."""
    repeated = np.repeat(users, [len(row) for row in items])
    planted = trained.world.rates(repeated, np.concatenate([np.array(row, np.int64) for row in items]))  # [n, A]
    return {f"{outcome}_rate": float(planted[:, a].mean()) for a, outcome in enumerate(OUTCOMES)}


def probe_events(world: SyntheticWorld, probe: int, end_ms: int) -> list[Event]:
    """A new user whose events alternate between two topics and end with a run of the second."""
    first, second = probe_topics(world, probe)
    rng = np.random.default_rng([probe, 1])
    topics = world.topic_of(world.item_ids())
    events = []
    for place in range(PROBE_EVENTS):
        topic = second if place % 2 or place >= PROBE_EVENTS - RECENT else first
        item = int(rng.choice(world.item_ids()[topics == topic]))
        action = OUTCOMES[int(rng.integers(len(OUTCOMES)))]
        time_ms = end_ms + (place - PROBE_EVENTS) * 60_000
        events.append(Event(probe_user(world, probe), item, ItemType.PIN, action, "home", time_ms))
    return events


def probe_topics(world: SyntheticWorld, probe: int) -> tuple[int, int]:
    """Two different topics."""
    first, second = np.random.default_rng([probe, 0]).choice(world.spec.num_topics, 2, replace=False)
    return int(first), int(second)


def probe_user(world: SyntheticWorld, probe: int) -> int:
    """A user id that the world does not have."""
    return int(world.user_ids().max()) + 1 + probe


def coverage(trained: Trained) -> float:
    """Share of the probes whose candidates hold both of their interests."""
    users = np.array([probe_user(trained.world, probe) for probe in range(PROBES)])
    covered = 0
    for probe, items in enumerate(ask(trained, users, dict.fromkeys(OUTCOMES, 0.5))):
        topics = trained.world.topic_of(np.array(items))
        shares = [float((topics == topic).mean()) for topic in probe_topics(trained.world, probe)]
        covered += min(shares) >= COVERED
    return covered / PROBES


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """The figures, as lines."""
    lines = ["", "variant   unordered recall@10   targets   unique   covers both interleaved interests"]
    for variant, result in results.items():
        recall = result["recall"]
        lines.append(
            f"{variant:<9} {recall['unordered_recall']:>19.3f} {recall['target_recall']:>9.3f}"
            f" {recall['proportion_unique']:>8.3f} {result['covers_both_interests']:>36.3f}"
        )
    for variant, result in results.items():
        if "sweep" not in result:
            continue
        lines += ["", f"{variant}: planted rates of what is returned, by the budget's share of saves"]
        lines += [
            f"  save {p['save_share']:.2f}   save rate {p['save_rate']:.4f}   click rate {p['click_rate']:.4f}"
            for p in result["sweep"]
        ]
        lines.append(f"  items shared by the two pure budgets: {result['shared_by_pure_budgets']:.1%}")
    return lines


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """The Pareto fronts: planted click rate against planted save rate along the sweep."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 4))
    for variant, result in results.items():
        if "sweep" not in result:
            continue
        points = result["sweep"]
        axes.plot([p["click_rate"] for p in points], [p["save_rate"] for p in points], marker="o", label=variant)
        for p in points:
            axes.annotate(
                f"{p['save_share']:g}", (p["click_rate"], p["save_rate"]), textcoords="offset points", xytext=(5, 4)
            )
    axes.set_xlabel("planted click rate of what is returned")
    axes.set_ylabel("planted save rate of what is returned")
    axes.set_title("Budget swept from clicks (0) to saves (1)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
