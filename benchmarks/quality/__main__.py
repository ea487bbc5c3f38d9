"""Table 1, Figures 4 and 5, ablations, peers: everything that the paper claims about quality, on public logs.

Each run is trained, read and kept under --work; a bench that was stopped goes on where it stopped. The logs are read
from --datasets (the folders kuairand-pure, retailrocket-mb and amazon-beauty).

    python -m benchmarks.quality --size small --datasets DATASETS --work work/quality --report docs/quality
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks.quality import page, speed
from benchmarks.quality.gathered import Gathered
from benchmarks.quality.latency import Latency, measure_latency
from benchmarks.quality.matrix import ALL_GROUPS, HEADLINE, SIZES, VARIANTS, Job, Size, jobs_of
from benchmarks.quality.recency import older_interest, synthetic_coverage
from benchmarks.quality.runs import Runner
from benchmarks.quality.store import RunStore, write_json
from benchmarks.quality.worlds import base_config, open_world
from pinrec_core.errors import PinrecError
from pinrec_core.eval.report import Provenance

_FOLDER = click.Path(file_okay=False, path_type=Path)
_LATENCY_REPEATS = {"full": 30, "small": 10, "smoke": 2}
_SPEED_ROUNDS = {"full": 5, "small": 2, "smoke": 1}


@click.command()
@click.option("--size", "size_name", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--datasets", required=True, envvar="PINREC_DATASETS", type=click.Path(exists=True, path_type=Path),
              help="Folder of the public logs; also PINREC_DATASETS.")  # fmt: skip
@click.option("--work", required=True, type=_FOLDER, help="Runs, and what they were made from.")
@click.option("--report", "report_dir", type=_FOLDER, help="Folder for the page, its plots and its JSON.")
@click.option("--only", multiple=True, type=click.Choice(ALL_GROUPS), help="Only these tables; repeatable.")
@click.option("--list", "list_only", is_flag=True, help="Say what would be run, and what of it is there.")
def main(
    size_name: str, datasets: Path, work: Path, report_dir: Path | None, only: tuple[str, ...], list_only: bool
) -> None:
    """Run what is missing of a size and write its report."""
    size = SIZES[size_name]
    if only:
        size = replace(size, groups=only)
    store = RunStore(work / "runs")
    jobs = jobs_of(size)
    if list_only:
        show(jobs, store)
        return
    command = f"python -m benchmarks.quality --size {size_name}" + "".join(f" --only {group}" for group in only)
    made_by = asdict(Provenance.here(command))
    failed = run_jobs(jobs, Runner(datasets, work, store, made_by, progress=True))
    found, measured = Gathered(store, size), measure_rest(size, datasets, work, failed)
    for line in page.text(found, measured):
        click.echo(line)
    if report_dir is not None:
        click.echo(page.write(report_dir, found, measured, command))


def show(jobs: list[Job], store: RunStore) -> None:
    """One line a run: its key, its table and row, how many of its readings are there."""
    for job in jobs:
        there = Counter(store.has(job.run, reading) for reading in job.readings)
        state = f"{there[True]}/{len(job.readings)}"
        click.echo(f"{job.run.key}  {state:>5}  {job.group:<12} {job.label}, seed {job.run.seed} ({job.run.world})")


def run_jobs(jobs: list[Job], runner: Runner) -> list[str]:
    """Run every job; what went wrong of those that could not be run, in words. The others go on."""
    failed = []
    with tqdm(jobs, desc="bench", unit=" runs", dynamic_ncols=True) as bar:
        for job in bar:
            bar.set_postfix_str(f"{job.group}: {job.label}, seed {job.run.seed}")
            try:
                runner.run(job)
            except PinrecError as error:
                failed.append(f"{job.group}, {job.label}, seed {job.run.seed}: {error}")
                tqdm.write(f"not run: {failed[-1]}")
    return list(dict.fromkeys(failed))


def measure_rest(size: Size, datasets: Path, work: Path, failed: list[str]) -> page.Measured:
    """What is no run of the matrix: latency, training speed, recency; kept under `work` too."""
    latencies: list[Latency] = []
    speeds: dict[str, Any] = {}
    coverage: list[dict[str, float]] = []
    older = None
    if "figure5" in size.groups:
        values = _kept(work / f"latency-{size.name}.json", lambda: _latency(size))
        latencies = [Latency(**{**value, "times_ms": tuple(value["times_ms"])}) for value in values]
    if "speed" in size.groups:
        speeds = _kept(work / f"speed-{size.name}.json", lambda: _speed(size, datasets, work))
    if "recency" in size.groups:
        coverage = [_coverage(size, work, seed) for seed in size.seeds]
        world = open_world(HEADLINE, datasets, work, jobs_of(replace(size, groups=("headline",)))[0].run.limits)
        older = older_interest(world, world.parts.test)
    return page.Measured(latencies, speeds, coverage, older, tuple(failed))


def _coverage(size: Size, work: Path, seed: int) -> dict[str, float]:
    def make() -> dict[str, float]:
        return synthetic_coverage(work / "synthetic", VARIANTS, seed, size.steering_steps)

    return dict(_kept(work / f"synthetic-{size.name}-{seed}.json", make))


def _latency(size: Size) -> list[dict[str, Any]]:
    return [asdict(each) for each in measure_latency(base_config(HEADLINE), _LATENCY_REPEATS[size.name])]


def _speed(size: Size, datasets: Path, work: Path) -> dict[str, Any]:
    most = size.max_train_users or 4_000
    try:
        return speed.compare(datasets, work, most, _SPEED_ROUNDS[size.name], threads=0)
    except PinrecError as error:
        click.echo(f"not run: training speed: {error}")
        return {}


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON of `path`, made if it is not there or empty."""
    values = json.loads(path.read_text()) if path.exists() else None
    if not values:
        started = time.monotonic()
        values = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)
        click.echo(f"{path.name}: {time.monotonic() - started:.0f} s")
    return values


if __name__ == "__main__":
    main()
