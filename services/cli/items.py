"""`pinrec items`: add items to what is served and delete them, through the item service."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from pinrec_core.errors import InvalidData
from services.cli.options import INT64, items_option
from services.common.client import connect
from services.proto import items_pb2
from services.proto.items_pb2_grpc import ItemServiceStub

TIMEOUT_S = 30.0

ITEMS_A_CALL = 500
"""Of a file; with embeddings of 1,024 numbers a call stays below 2 MB."""

_COLUMNS = ("item_id", "text", "embedding", "title")


@click.group()
def items() -> None:
    """Add items to what is served, or delete them.

    A new item can be found, and a deleted one is gone, within a second after the acknowledgement. Both survive restarts
    and are carried into the next release by `pinrec export --items`.
    """


@items.command()
@click.option("--item", "item_id", type=INT64, help="Item id.")
@click.option("--text", default="", help="What it is about; the release's text encoder makes its content.")
@click.option("--title", default="", help="Words to show a person.")
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Parquet file instead: item_id, one of text and embedding (list of floats), optional title.",
)
@items_option
def add(item_id: int | None, text: str, title: str, file: Path | None, address: str) -> None:
    """Add items, or replace them, and wait until they are durable.

    \b
    pinrec items add --item 9001 --text "brass garden lantern" --title "Brass lantern"
    pinrec items add --from new_items.parquet
    """
    rows, total = iter([items_pb2.Item(item_id=item_id or 0, text=text, title=title)]), 1
    if (item_id is None) == (file is None):
        raise click.UsageError("give either --item or --from")
    if file is not None:
        rows, total = _rows_of(file)
    sequence, bar = 0, tqdm(total=total, unit="item", disable=total == 1)
    with connect(address, ItemServiceStub) as stub, bar:
        while part := list(islice(rows, ITEMS_A_CALL)):
            sequence = stub.AddItems(items_pb2.AddItemsRequest(items=part), timeout=TIMEOUT_S).sequence
            bar.update(len(part))
    click.echo(f"{total} {_noun(total)} durable as of change {sequence}")


@items.command()
@click.argument("item_ids", nargs=-1, required=True, type=INT64, metavar="ITEM...")
@items_option
def delete(item_ids: tuple[int, ...], address: str) -> None:
    """Delete items: they are never returned again unless they are added again. Negative ids follow `--`."""
    with connect(address, ItemServiceStub) as stub:
        reply = stub.DeleteItems(items_pb2.DeleteItemsRequest(item_ids=item_ids), timeout=TIMEOUT_S)
    click.echo(f"{len(item_ids)} {_noun(len(item_ids))} deleted as of change {reply.sequence}")


@items.command()
@items_option
def status(address: str) -> None:
    """Show how many items were added and deleted, and the releases that they are embedded for."""
    with connect(address, ItemServiceStub) as stub:
        reply = stub.GetItemStatus(items_pb2.GetItemStatusRequest(), timeout=TIMEOUT_S)
    click.echo(f"added {reply.num_added}, deleted {reply.num_deleted}, last change {reply.sequence}")
    click.echo(f"releases open: {', '.join(map(str, reply.open_releases)) or 'none'}")


def _rows_of(file: Path) -> tuple[Iterator[items_pb2.Item], int]:
    """The rows of a Parquet file, and how many. Raises InvalidData."""
    try:
        parquet = pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{file.name} cannot be read: {str(error).splitlines()[0]}") from error
    columns = [name for name in _COLUMNS if name in parquet.schema_arrow.names]
    if "item_id" not in columns or not {"text", "embedding"} & set(columns):
        found = parquet.schema_arrow.names
        raise InvalidData(f"{file.name} has columns {found}; needed: item_id, and text or embedding")
    batches = parquet.iter_batches(ITEMS_A_CALL, columns=columns)
    return (_item(row, file.name) for batch in batches for row in batch.to_pylist()), parquet.metadata.num_rows


def _item(row: dict[str, Any], name: str) -> items_pb2.Item:
    """A row; an embedding counts where there is one, else the text, as in an event log's items."""
    given = {key: value for key, value in row.items() if value}
    if given.get("embedding"):
        given.pop("text", None)
    try:
        return items_pb2.Item(**{"item_id": row["item_id"], **given})
    except (TypeError, ValueError) as error:
        raise InvalidData(f"{name} has a row {row} that is no item: {error}") from error


def _noun(count: int) -> str:
    return "item" if count == 1 else "items"
