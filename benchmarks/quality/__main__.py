"""Table 1, Figures 4 and 5, ablations, peers: everything that the paper claims about quality, on public logs.

Each run is trained under --work; what it finds is kept under --results, small enough to be committed, and is not made
again: a bench that was stopped goes on where it stopped, here or on another machine. The logs are read from --datasets
(the folders kuairand-pure, retailrocket-mb and amazon-beauty). The report shows all that there is of a size.

    python -m benchmarks.quality --size small --datasets DATASETS --work work/quality --report work/quality/report
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from benchmarks.quality import page, speed
from benchmarks.quality.gathered import Gathered
from benchmarks.quality.latency import Latency, measure_latency
from benchmarks.quality.matrix import ALL_GROUPS, HEADLINE, SIZES, VARIANTS, Job, Size, base_config, jobs_of
from benchmarks.quality.recency import older_interest, synthetic_coverage
from benchmarks.quality.runs import Runner
from benchmarks.quality.store import RunStore, write_json
from benchmarks.quality.worlds import open_world
from pinrec_core.errors import PinrecError
from pinrec_core.eval.report import Provenance

_FOLDER = click.Path(file_okay=False, path_type=Path)
_LATENCY_REPEATS = {"full": 30, "small": 10, "smoke": 2}
_SPEED_ROUNDS = {"full": 5, "small": 2, "smoke": 1}


@click.command()
@click.option("--size", "size_name", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--datasets", required=True, envvar="PINREC_DATASETS",
              type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Folder of the public logs; also PINREC_DATASETS.")  # fmt: skip
@click.option("--work", required=True, type=_FOLDER, help="Converted logs and models; may be lost.")
@click.option("--results", type=_FOLDER, help="What runs found, to be kept.  [default: WORK/results]")
@click.option("--report", "report_dir", type=_FOLDER, help="Folder for the page, its plots and its JSON.")
@click.option("--only", multiple=True, type=click.Choice(ALL_GROUPS), help="Run only these tables; repeatable.")
@click.option("--row", "rows", multiple=True, help="Run only rows that begin so; repeatable.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Run only these seeds; repeatable.")
@click.option("--report-only", is_flag=True, help="Run nothing.")
@click.option("--list", "list_only", is_flag=True, help="Say what would be run, and what of it is there.")
def main(
    size_name: str,
    datasets: Path,
    work: Path,
    results: Path | None,
    report_dir: Path | None,
    only: tuple[str, ...],
    rows: tuple[str, ...],
    seeds: tuple[int, ...],
    report_only: bool,
    list_only: bool,
) -> None:
    """Run what is missing of a size and write its report."""
    size, results = SIZES[size_name], results or work / "results"
    store = RunStore(results, work)
    check_asked(size, only, rows, seeds)
    jobs = [job for job in jobs_of(size) if wanted(job, only, rows, seeds)]
    if list_only:
        show(jobs, store)
        return
    command = f"python -m benchmarks.quality --size {size_name}"
    made_by = asdict(Provenance.here(command))
    groups = () if report_only else only or size.groups
    failed = [] if report_only else run_jobs(jobs, Runner(datasets, work, store, made_by, progress=True))
    found = Gathered(store, size)
    measured = measure_rest(size, groups, datasets, work, results, failed, seeds or size.seeds)
    for line in page.text(found, measured):
        click.echo(line)
    if report_dir is not None:
        click.echo(page.write(report_dir, found, measured, command))


def check_asked(size: Size, groups: tuple[str, ...], rows: tuple[str, ...], seeds: tuple[int, ...]) -> None:
    """Raises click.BadParameter for what the size does not have: nothing would be run without a word."""
    labels = list(dict.fromkeys(job.label for job in jobs_of(size) if not groups or job.group in groups))
    for name, asked, allowed in (
        ("--only", groups, list(size.groups)),
        ("--seed", seeds, list(size.seeds)),
    ):
        for value in asked:
            if value not in allowed:
                raise click.BadParameter(f"{name} has value {value!r}; allowed for this size: {allowed}")
    for row in rows:
        if not any(label.startswith(row) for label in labels):
            raise click.BadParameter(f"--row has value {row!r}; allowed: the beginning of one of {labels}")


def wanted(job: Job, groups: tuple[str, ...], rows: tuple[str, ...], seeds: tuple[int, ...]) -> bool:
    """Whether a job is among those asked for; nothing asked for is everything."""
    of_group, of_seed = not groups or job.group in groups, not seeds or job.run.seed in seeds
    return of_group and of_seed and (not rows or job.label.startswith(rows))


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


def measure_rest(
    size: Size,
    groups: tuple[str, ...],
    datasets: Path,
    work: Path,
    results: Path,
    failed: list[str],
    seeds: tuple[int, ...],
) -> page.Measured:
    """What is no run of the matrix: latency, training speed, recency. Of `groups` what is missing is measured.

    Of recency only `seeds` are made; what cannot be read is added to `failed`.
    """
    kept = _Kept(results, groups)
    latencies = kept.of("figure5", f"latency-{size.name}.json", lambda: _latency(size)) or []
    speeds = kept.of("speed", f"speed-{size.name}.json", lambda: _speed(size, datasets, work)) or {}
    as_found = _Kept(results, ())
    coverage = [
        (kept if seed in seeds else as_found).of(
            "recency", f"synthetic-{size.name}-{seed}.json", partial(_coverage, size, work, seed)
        )
        for seed in size.seeds
    ]
    older = None
    if "recency" in size.groups:
        try:
            world = open_world(HEADLINE, datasets, work, jobs_of(replace(size, groups=("headline",)))[0].run.limits)
            older = older_interest(world, world.parts.test)
        except PinrecError as error:
            failed.append(f"recency on {HEADLINE}: {error}")
    return page.Measured(
        [Latency(**{**value, "times_ms": tuple(value["times_ms"])}) for value in latencies],
        speeds,
        [seed for seed in coverage if seed],
        older,
        tuple(failed),
    )


def _coverage(size: Size, work: Path, seed: int) -> dict[str, float]:
    return synthetic_coverage(work / "synthetic", VARIANTS, seed, size.steering_steps)


def _latency(size: Size) -> list[dict[str, Any]]:
    return [asdict(each) for each in measure_latency(base_config(HEADLINE), _LATENCY_REPEATS[size.name])]


def _speed(size: Size, datasets: Path, work: Path) -> dict[str, Any]:
    most = size.max_train_users or 4_000
    try:
        return speed.compare(datasets, work, most, _SPEED_ROUNDS[size.name], threads=0)
    except PinrecError as error:
        click.echo(f"not run: training speed: {error}")
        return {}


@dataclass(frozen=True)
class _Kept:
    """JSON files of measurements; those of `groups` are made where they are not there or empty."""

    folder: Path
    groups: tuple[str, ...]

    def of(self, group: str, name: str, make: Callable[[], Any]) -> Any:
        """The file's values; None if there is none and its group was not asked for."""
        path = self.folder / name
        values = json.loads(path.read_text()) if path.exists() else None
        if values or group not in self.groups:
            return values
        started = time.monotonic()
        values = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)
        click.echo(f"{path.name}: {time.monotonic() - started:.0f} s")
        return values


if __name__ == "__main__":
    main()
