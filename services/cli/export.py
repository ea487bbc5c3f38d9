"""`pinrec export`: publish a trained model as the next release."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pinrec_core.model.id_tables import Codes

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NEW_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option("--run", "run_dir", required=True, type=_FOLDER, help="What `pinrec train` wrote.")
@click.option("--data", "data_dir", required=True, type=_FOLDER, help="The event log, or a newer one.")
@click.option("--releases", default="work/releases", show_default=True, type=_NEW_FOLDER, help="Folder of releases.")
@click.option(
    "--id-shards",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Files that the ID table is cut into, by row range.",
)
@click.option(
    "--id-codes",
    default="fp16",
    show_default=True,
    type=click.Choice(["fp16", "int8"]),
    help="How its rows are kept; int8 halves the table.",
)
@click.option(
    "--items",
    "items",
    metavar="DIR|HOST:PORT",
    help="Item log (`--items-data` of `pinrec up`) or item service: added items go in, deleted ones stay out.",
)
@click.option(
    "--activate/--no-activate",
    default=True,
    show_default=True,
    help="Make it the release that is served; the one before stays open.",
)
def export(
    run_dir: Path, data_dir: Path, releases: Path, id_shards: int, id_codes: Codes, items: str | None, activate: bool
) -> None:
    """Publish a trained model as the next release.

    Writes decoder weights, the ID embedding and its tables, the item table, popular lists, the text encoder and the
    Faiss index to RELEASES/<n>, with a manifest of checksums, and renames it into place. The index covers the pins of
    --data, so exporting again with a newer event log refreshes the corpus without training. Golden requests and what
    this process answers to them go into the release; `pinrec release activate` holds the serving stack to them.

    What was added and deleted with `pinrec items` is served in any case. With --items it is inside the release from the
    start; the item service may be running meanwhile, and what comes later is told to the release as ever.
    """
    from pinrec_core.data.carry import carry_items
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.golden import add_golden
    from pinrec_core.release import activate as activate_release
    from pinrec_core.train.checkpoint import load_checkpoint, load_metrics, note_other_data
    from pinrec_core.train.export import export as export_release
    from services.items.listing import items_at

    model, config, fitted = load_checkpoint(run_dir)
    dataset = open_dataset(data_dir, config, fitted=fitted)
    note_other_data(run_dir, dataset)
    if items is not None:
        dataset = carry_items(dataset, items_at(items))
    golden = partial(add_golden, titles=dataset.titles, request_time_ms=dataset.watermark_ms)
    number = export_release(model, dataset, releases, load_metrics(run_dir), id_shards, id_codes, golden)
    click.echo(f"release {number} published under {releases}")
    if activate:
        state = activate_release(releases, number)
        click.echo(f"release {state.active} is active; open: {', '.join(map(str, state.open))}")
