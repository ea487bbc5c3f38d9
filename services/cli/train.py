"""`pinrec train` and `pinrec evaluate`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pinrec_core.errors import InvalidConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

if TYPE_CHECKING:  # a verb's heavy imports are made when it is called
    from pinrec_core.eval.evaluate import Reading
    from pinrec_core.eval.results import UserResults
    from pinrec_core.eval.run_report import TrainedRun

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NOT_SHOWN = ("step", "loss")
_PER_OUTCOME_OR_SURFACE = "/"
"""In the names of metrics of one outcome or surface; they are printed last."""


def parse_overrides(assignments: tuple[str, ...]) -> dict[str, Any]:
    """("train.max_steps=50",) -> {"train.max_steps": 50}; TOML values, bare words are text. Raises InvalidConfig."""
    overrides = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise InvalidConfig(f"--set has value {assignment!r}; allowed: SECTION.KEY=VALUE")
        try:
            overrides[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            overrides[key] = text
    return overrides


@click.command()
@click.option(
    "--data", "data_dir", required=True, type=_FOLDER, help="Event log in the contract (`pinrec data check`)."
)
@click.option(
    "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), help="TOML file; see configs/*.toml."
)
@click.option(
    "--run",
    "run_dir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run, new unless --resume.",
)
@click.option("--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a key; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of --run, with its configuration.")
@click.option("--quiet", is_flag=True, help="No progress bars.")
def train(
    data_dir: Path,
    config_path: Path | None,
    run_dir: Path,
    assignments: tuple[str, ...],
    resume: bool,
    quiet: bool,
) -> None:
    """Train a model on an event log.

    Users are split by a hash of their id; training sees the training users only. Every train.eval_every steps the
    unordered recall of the validation users is measured (Eq. 6) and a checkpoint written; training ends at
    train.max_steps or train.max_minutes, or after train.patience validations without a better one. --run then holds the
    best weights (model.safetensors), the newest checkpoint, the configuration and metrics.json.

    \b
      pinrec train --data work/data --config configs/demo.toml --run work/run --set train.max_steps=50
      pinrec train --data work/data --run work/run --resume
      torchrun --nproc-per-node 2 -m -- services.cli.main train --data work/data --config configs/demo.toml --run RUN

    Under torchrun each process takes a share of every batch and sees the negatives of all of it: train.batch_size is
    that of all processes together, and the result that of one process, dropout's draws aside.
    """
    from pinrec_core.config import config_from_dict, load_config
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.eval.evaluate import evaluate
    from pinrec_core.train.checkpoint import load_fitted, load_run_config
    from pinrec_core.train.distributed import is_first_rank
    from pinrec_core.train.loop import train as run_training

    overrides = parse_overrides(assignments)
    if resume and config_path is not None:
        raise InvalidConfig(
            "--config is given with --resume; allowed: one of them, since a run keeps its configuration"
        )
    if resume:
        config = config_from_dict(_overridden(load_run_config(run_dir).to_dict(), overrides))
    elif config_path is None:
        raise InvalidConfig("--config is missing; allowed: a TOML file, or --resume")
    else:
        check_unused(run_dir)
        config = load_config(config_path, overrides)
    dataset = open_dataset(data_dir, config, fitted=load_fitted(run_dir) if resume else None)
    validation = dataset.split(config).validation
    if is_first_rank():
        click.echo(f"{dataset.name}: {dataset.histories.num_users:,} users, {dataset.histories.num_events:,} events")
    result = run_training(
        config, dataset, run_dir, lambda model: evaluate(model, dataset, validation), progress=not quiet, resume=resume
    )
    if not is_first_rank():
        return
    click.echo(
        f"stopped by {result.stopped_by} at step {result.steps} after {result.seconds:.0f} s; "
        f"best at step {result.best_step}, on validation users:"
    )
    click.echo(table({"model": result.metrics}))


@click.command()
@click.option("--run", "run_dir", required=True, type=_FOLDER, help="What `pinrec train` wrote.")
@click.option("--data", "data_dir", required=True, type=_FOLDER, help="The event log it was trained on.")
@click.option("--k", default=10, show_default=True, type=click.IntRange(min=1), help="Items each embedding retrieves.")
@click.option(
    "--targets", default=8, show_default=True, type=click.IntRange(min=1), help="Last target events of a user."
)
@click.option("--keep-seen", is_flag=True, help="Let items that the user has seen be retrieved.")
@click.option(
    "--conditioning",
    default="true",
    show_default=True,
    metavar="true|past|OUTCOME",
    help="Outcomes that the embeddings are divided over: those of the targets, of the user's past, or one.",
)
@click.option(
    "--report",
    "report_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a page with tables and plots there, and its figures as JSON.",
)
@click.option(
    "--beside", "others", multiple=True, type=_FOLDER, metavar="RUN", help="Another run for the report; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def evaluate(
    run_dir: Path,
    data_dir: Path,
    k: int,
    targets: int,
    keep_seen: bool,
    conditioning: str,
    report_dir: Path | None,
    others: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure a trained model on users it has not seen.

    The last --targets engagements of every test user are the targets, all before them the history. The model runs free
    (no teacher forcing) and generates as many embeddings as there are targets, divided over outcomes like them; each
    retrieves its top --k of all pins. In use nobody knows a request's outcomes: --conditioning past divides by the mix
    of the user's own past instead, an outcome's name puts all embeddings on it.

    \b
    unordered_recall     share of users with at least one target retrieved (Eq. 6); also by surface and by events in
                         the history
    target_recall        share of targets retrieved; also by outcome and by engagements of training users with the item
    proportion_unique    distinct items among all retrieved, over all users
    unique_within_user   the same inside one user's lists
    coverage             share of the corpus that any user gets
    served_*             the same recalls of the k x targets candidates that a request would be served: compressed,
                         allocated, without duplicates
    compression_ratio    embeddings generated for one kept

    `popularity@n` is the same list of the n most engaged pins for everybody, for n = k and n = k x targets (as many as
    a request is served). The result is kept in RUN/metrics.json and travels with an exported release.

    --report adds intervals (users drawn again with replacement), recall by surface (Table 1), all pairs of desired and
    actual outcome (Figure 4) and the number of embeddings a step (Figure 5, mt_oc). Runs of --beside, of the same data
    and split, stand in the same tables; with a uc run among them Figure 4 shows the lift over it.

    \b
      pinrec evaluate --run RUN --data DATA
      pinrec evaluate --run MT_OC_RUN --data DATA --beside UC_RUN --report work/report
    """
    from pinrec_core.eval.baselines.popularity import evaluate_popularity
    from pinrec_core.eval.evaluate import Reading
    from pinrec_core.eval.served import evaluate_served
    from pinrec_core.train.checkpoint import add_test_metrics

    _check_beside(run_dir, others, report_dir)
    run = _open_run(run_dir, data_dir, targets)
    reading = Reading(k, targets, not keep_seen, conditioning)
    per_user = run.measured(reading, progress=not quiet)
    rows, drop_seen = run.dataset.split(run.config), not keep_seen
    found = per_user.summary()
    found |= evaluate_served(run.model, run.dataset, rows.test, k, targets, drop_seen, conditioning)
    results = {"model": found}
    for length in (k, k * targets):
        popularity = evaluate_popularity(run.dataset, rows.train, rows.test, length, targets, drop_seen)
        results[f"popularity@{length}"] = popularity
    settings: dict[str, Any] = {"k": k, "num_targets": targets, "drop_seen": drop_seen, "conditioning": conditioning}
    add_test_metrics(run_dir, {**found, **settings})
    click.echo(json.dumps({**settings, **results}, indent=1) if as_json else table(results))
    if report_dir is not None:
        runs = [run, *(_open_run(other, data_dir, targets) for other in others)]
        page = _write_report(report_dir, runs, reading, per_user, progress=not quiet)
        click.echo(f"report written to {page}", err=as_json)


def _check_beside(run_dir: Path, others: tuple[Path, ...], report_dir: Path | None) -> None:
    """Raises InvalidConfig: other runs stand in a report, which tells them apart by their folders' names."""
    if others and report_dir is None:
        raise InvalidConfig("--beside is given without --report; allowed: both, since other runs stand in the report")
    names = [run.resolve().name for run in (run_dir, *others)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidConfig(f"--beside has value {twice}; allowed: runs whose folders have names of their own")


def _open_run(run_dir: Path, data_dir: Path, num_targets: int) -> TrainedRun:
    """A trained model and its test users. Raises InvalidConfig if there are none."""
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.eval.protocols import as_configured
    from pinrec_core.eval.run_report import TrainedRun
    from pinrec_core.train.checkpoint import load_checkpoint, note_other_data

    model, config, fitted = load_checkpoint(run_dir)
    dataset = open_dataset(data_dir, config, fitted=fitted)
    note_other_data(run_dir, dataset)
    parts = as_configured(dataset, config, num_targets)
    if not parts.test:
        raise InvalidConfig(
            f"data.test_share has value {config.data.test_share}, which leaves no test user of {dataset.name}; "
            "allowed: a share that does"
        )
    return TrainedRun(f"{config.model.variant} ({run_dir.name})", model, dataset, parts)


def _write_report(
    folder: Path, runs: list[TrainedRun], reading: Reading, per_user: UserResults, progress: bool
) -> Path:
    """The report's page, and everything beside it."""
    from pinrec_core.eval.report import Provenance, Report, write_report
    from pinrec_core.eval.run_report import run_sections

    made = Provenance.here(shlex.join(["pinrec", *sys.argv[1:]]))
    sections = run_sections(runs, reading, per_user, progress)
    return write_report(folder, Report(f"Evaluation on {runs[0].dataset.name}", made, sections))


def check_unused(run_dir: Path) -> None:
    """Raise InvalidConfig if a new run would overwrite a trained one, or mix with files of others.

    A run that was interrupted before its first checkpoint holds nothing to lose.
    """
    present = {path.name for path in run_dir.iterdir()} if run_dir.exists() else set()
    if kept := sorted(present - {"config.json", "vocabulary.json", "dataset.json", "text_encoder"}):
        raise InvalidConfig(
            f"--run has value {str(run_dir)!r}, which holds {kept[0]!r}; allowed: a new folder, or --resume"
        )


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics as lines, one column a model."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    ordered = sorted((n for n in names if n not in _NOT_SHOWN), key=lambda name: _PER_OUTCOME_OR_SURFACE in name)
    lines = ["  " + f"{'':<32}" + "".join(f"{title:>16}" for title in columns)]
    for name in ordered:
        cells = [_cell(name, metrics.get(name)) for metrics in columns.values()]
        lines.append(f"  {name:<32}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if name == "users" else f"{value:.4f}"


def _overridden(values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    for dotted, value in overrides.items():
        section, _, key = dotted.partition(".")
        values.setdefault(section, {})[key] = value
    return values
