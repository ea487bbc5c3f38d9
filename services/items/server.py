"""The item service: owns the item log, embeds its items for every open release, tells those who follow it.

    python -m services.items.server --releases DIR --data DIR --listen HOST:PORT --metrics-port N

RocksDB and torch block, so each has a thread beside the event loop: an acknowledgement does not wait for an embedding.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc.aio
import torch
import uvloop
from prometheus_client import CollectorRegistry

from pinrec_core.items.log import Item, ItemLog
from pinrec_core.items.vectors import ItemVectors
from pinrec_core.serving.open_releases import OpenReleases
from services.common.logs import configure_logging
from services.common.metrics import ItemsMetrics, process_registry
from services.common.one_line import one_line_errors
from services.common.releases import ServedReleases
from services.common.server import GrpcServer, ServerOptions, server_options
from services.common.tracing import open_tracing
from services.items.client import pack_changes
from services.items.validate import added_items, deleted_items
from services.proto import items_pb2, items_pb2_grpc
from services.proto.items_pb2 import (
    AddItemsRequest,
    ChangeItemsResponse,
    DeleteItemsRequest,
    GetChangesRequest,
    GetChangesResponse,
    GetItemStatusRequest,
    GetItemStatusResponse,
    ItemState,
    ListItemsRequest,
    ListItemsResponse,
)

SERVICE = "pinrec.v1.ItemService"

ITEMS_A_MESSAGE = 512
"""Most changes in one answer: about half a megabyte at 256 dimensions, embedded in a few milliseconds."""

ITEMS_A_LISTING = 128
"""Most items in one answer of ListItems: below 16 MB with the longest texts and 4,096 numbers each."""

MAX_WAIT_MS = 10_000
"""A call of GetChanges is held no longer, whatever it asks for."""

PARTS = ("decoder.safetensors", "id_embedding.pt", "id_tables", "items", "text_encoder")
"""What this service reads of a release."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class ItemServicer(items_pb2_grpc.ItemServiceServicer):  # type: ignore[misc]
    """`pinrec.v1.ItemService`; every error leaves as a PinrecError and becomes a status in the edge interceptor."""

    def __init__(self, items: ItemLog, releases: ServedReleases[ItemVectors], metrics: ItemsMetrics) -> None:
        self._items = items
        self._releases = releases
        self._metrics = metrics
        self._write = ThreadPoolExecutor(1, "write")
        self._embed = ThreadPoolExecutor(1, "embed")
        self._changed = asyncio.Event()
        self._note_counts()

    async def AddItems(  # noqa: N802  the name in the proto
        self, request: AddItemsRequest, context: grpc.aio.ServicerContext
    ) -> ChangeItemsResponse:
        """Acknowledges items once they are durable."""
        widths = {self._releases.get(number).content_dim for number in self._releases.open_numbers()}
        return await self._put(added_items(request, widths), "added")

    async def DeleteItems(  # noqa: N802  the name in the proto
        self, request: DeleteItemsRequest, context: grpc.aio.ServicerContext
    ) -> ChangeItemsResponse:
        """Acknowledges deletions once they are durable."""
        return await self._put(deleted_items(request), "deleted")

    async def GetChanges(  # noqa: N802  the name in the proto
        self, request: GetChangesRequest, context: grpc.aio.ServicerContext
    ) -> GetChangesResponse:
        """Changes that a release does not hold, in its vectors; holds the call while there is none."""
        vectors = self._releases.get(request.release)
        after = max(request.after_sequence, vectors.items_sequence)
        with self._metrics.followers.track_inprogress():
            await self._wait_beyond(after, min(request.wait_ms, MAX_WAIT_MS) / 1_000)
        return await _run_in(self._embed, self._changes, vectors, after)

    async def ListItems(  # noqa: N802  the name in the proto
        self, request: ListItemsRequest, context: grpc.aio.ServicerContext
    ) -> ListItemsResponse:
        """Items in their newest state, as they were given."""
        items = await _run_in(self._write, self._items.changes, request.after_sequence, ITEMS_A_LISTING + 1)
        listed = [_state(item) for item in items[:ITEMS_A_LISTING]]
        return ListItemsResponse(items=listed, more=len(items) > ITEMS_A_LISTING)

    async def GetItemStatus(  # noqa: N802  the name in the proto
        self, request: GetItemStatusRequest, context: grpc.aio.ServicerContext
    ) -> GetItemStatusResponse:
        """What the log holds, and the releases that items are embedded for."""
        return GetItemStatusResponse(**vars(self._items.counts), open_releases=self._releases.open_numbers())

    def close(self) -> None:
        """Wait for what is being written and read, then close the log."""
        self._write.shutdown()
        self._embed.shutdown()
        self._items.close()

    async def _put(self, items: Sequence[Item], kind: str) -> ChangeItemsResponse:
        sequence = await _run_in(self._write, self._items.put, items)
        self._metrics.changes.labels(kind).inc(len(items))
        self._note_counts()
        self._changed.set()
        self._changed = asyncio.Event()
        return ChangeItemsResponse(sequence=sequence)

    async def _wait_beyond(self, sequence: int, wait_s: float) -> None:
        """Return when the log holds a later change, or after `wait_s`."""
        if self._items.counts.sequence <= sequence:
            try:
                await asyncio.wait_for(self._changed.wait(), wait_s)
            except asyncio.TimeoutError:
                return

    def _changes(self, vectors: ItemVectors, after: int) -> GetChangesResponse:
        items = self._items.changes(after, ITEMS_A_MESSAGE + 1)
        told, more = items[:ITEMS_A_MESSAGE], len(items) > ITEMS_A_MESSAGE
        [changes] = vectors.run([told])
        self._metrics.told.inc(len(told))
        return pack_changes(changes, told[-1].sequence if told else after, more)

    def _note_counts(self) -> None:
        counts = self._items.counts
        self._metrics.sequence.set(counts.sequence)
        self._metrics.added.set(counts.num_added)
        self._metrics.deleted.set(counts.num_deleted)


def _state(item: Item) -> ItemState:
    given = items_pb2.Item(item_id=item.item_id, text=item.text, title=item.title, embedding=item.embedding)
    return ItemState(item=given, deleted=item.deleted, sequence=item.sequence)


async def _run_in(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


class ItemService:
    """The process: a server, the log that it owns, and the releases that it embeds for."""

    def __init__(self, releases: Path, data: Path, options: ServerOptions, registry: CollectorRegistry) -> None:
        """Opens the log. Raises Unavailable."""
        items = ItemLog(data)
        self.releases: ServedReleases[ItemVectors] = ServedReleases(
            releases, OpenReleases(releases, ItemVectors.open, PARTS)
        )
        self.server = GrpcServer([SERVICE], options, registry, open_tracing("items"))
        self.servicer = ItemServicer(items, self.releases, ItemsMetrics(registry))
        items_pb2_grpc.add_ItemServiceServicer_to_server(self.servicer, self.server.server)

    async def run(self) -> None:
        """Serve until SIGTERM, drain, close the log. Items are taken even while no release can be opened."""
        try:
            await self.server.start()
            log.info("releases open: %s", await self.releases.settle())
            await self.server.set_serving(True)
            await self.server.run_until_stopped()
        finally:
            await asyncio.to_thread(self.servicer.close)


@click.command(name="items")
@click.option(
    "--releases",
    required=True,
    envvar="PINREC_RELEASES",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with serving.json and the numbered releases.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the item log (RocksDB), made if missing; one process at a time owns it.",
)
@server_options(listen="localhost:8700", metrics_port=9700)
def main(releases: Path, data: Path, **options: Any) -> None:
    """Serve pinrec.v1.ItemService: take new and deleted items, tell stages and signals of them.

    An acknowledged change is on disk. Whoever follows (the retrieve stage, the signal service) has it within a second,
    in the vectors of each release that is open. SIGTERM drains: health NOT_SERVING, calls in flight are answered, then
    the process ends.
    """
    configure_logging("items", options["log_format"])
    torch.set_num_threads(1)  # a few items at a time; the cores belong to those who serve

    async def serve() -> None:
        await ItemService(releases, data, ServerOptions(**options), process_registry()).run()

    with one_line_errors():
        uvloop.run(serve())


if __name__ == "__main__":
    main()
