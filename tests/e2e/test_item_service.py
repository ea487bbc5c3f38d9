"""The real item service: what it acknowledges is found, in each release's vectors, through kill -9 and restarts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import pytest
from click.testing import CliRunner

from pinrec_core.errors import InvalidConfig, Unavailable
from pinrec_core.items.fresh import FreshItems
from pinrec_core.release import ServingState, open_release, write_serving_state
from pinrec_core.retrieve.search import Retriever
from pinrec_core.schema import ItemType
from services.cli.main import main
from services.common.probe import serves
from services.items.client import ItemFollower, unpack_changes
from services.items.listing import items_at
from services.proto import items_pb2
from services.proto.items_pb2_grpc import ItemServiceStub
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NEW = 5_000_000_000


def eventually(condition) -> bool:
    """Poll for two minutes: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.05) for _ in range(2_400))


@dataclass
class Service:
    """One running item service."""

    process: subprocess.Popen
    address: str
    stub: ItemServiceStub

    def add(self, *items: items_pb2.Item) -> int:
        return self.stub.AddItems(items_pb2.AddItemsRequest(items=items), timeout=30).sequence

    def delete(self, *item_ids: int) -> int:
        return self.stub.DeleteItems(items_pb2.DeleteItemsRequest(item_ids=item_ids), timeout=30).sequence

    def status(self) -> items_pb2.GetItemStatusResponse:
        return self.stub.GetItemStatus(items_pb2.GetItemStatusRequest(), timeout=30)

    def changes(self, release: int, after: int = 0, wait_ms: int = 0) -> items_pb2.GetChangesResponse:
        request = items_pb2.GetChangesRequest(release=release, after_sequence=after, wait_ms=wait_ms)
        return self.stub.GetChanges(request, timeout=30)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def service(releases, data, address="") -> Iterator[Service]:
    if not address:
        address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "services.items.server", "--releases", str(releases), "--data", str(data)]
    process = subprocess.Popen([*command, "--listen", address, "--metrics-port", "0"])
    try:
        assert eventually(lambda: process.poll() is not None or serves(address))
        with grpc.insecure_channel(address) as channel:
            yield Service(process, address, ItemServiceStub(channel))
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def releases(world, tmp_path_factory):
    """Releases 1 and 2 of the world, both open, under a state of their own."""
    root = tmp_path_factory.mktemp("releases")
    for number in (1, 2):
        (root / str(number)).symlink_to(world.releases / str(number))
    write_serving_state(root, ServingState(1, (1, 2)))
    return root


@pytest.fixture(scope="module")
def running(releases, tmp_path_factory):
    with service(releases, tmp_path_factory.mktemp("log") / "items") as one:
        yield one


def holds(index, item_id: int) -> bool:
    """Whether a search for everything finds an item."""
    [(ids, _)] = index.search(np.ones((1, index.dim), np.float32), [index.num_items])
    return item_id in ids.tolist()


def pin_with_vector(release):
    """An item of the release, its content and its vector in the index."""
    row = int(np.flatnonzero(release.items.types == ItemType.PIN)[3])
    item_id = int(release.items.ids[row])
    index = Retriever.open(release).index
    content = release.items.content[row].astype(np.float32) * release.items.scale[row]
    return item_id, content, index


def test_an_item_gets_the_vector_that_an_index_would_hold(running, releases):
    """An item of the release added again with its own content: its inner products with any query are as before.

    But for the length of a row that was rounded to INT8, which is made one again: some 1e-4.
    """
    queries = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    for number in (1, 2):
        item_id, content, index = pin_with_vector(open_release(releases, number))
        before = [dict(zip(*map(list, hits), strict=True))[item_id] for hits in index.search(queries, [300] * 5)]
        changed = running.add(items_pb2.Item(item_id=item_id, embedding=content))
        changes = unpack_changes(running.changes(number, after=changed - 1))
        assert changes.item_ids.tolist() == [item_id]
        np.testing.assert_allclose(queries @ changes.vectors[0], before, atol=2e-3)
        index.apply(changes)
        after = [dict(zip(*map(list, hits), strict=True))[item_id] for hits in index.search(queries, [300] * 5)]
        np.testing.assert_allclose(after, before, atol=2e-3)


def test_followers_have_a_change_soon_and_go_on_through_kill_9(releases, tmp_path):
    release = open_release(releases, 1)
    known = int(release.items.ids[release.items.types == ItemType.PIN][0])
    index, fresh = Retriever.open(release).index, FreshItems(release.content_dim)
    with service(releases, tmp_path / "items") as first:
        followers = [ItemFollower(first.address, 1, target) for target in (index, fresh)]
        for follower in followers:
            follower.wait()
        first.add(items_pb2.Item(item_id=NEW, text="brass garden lantern"))
        assert eventually(lambda: holds(index, NEW) and fresh.knows_any)
        [flag], _, [scale] = fresh.content_of(np.array([NEW]))
        assert flag
        assert scale > 0
        first.delete(known)
        assert eventually(lambda: not holds(index, known))
        first.add(items_pb2.Item(item_id=NEW + 1, text="mossy stone"))
        first.delete(NEW)
        first.kill()
        assert holds(index, NEW + 1) or index.num_items >= 299, "what is known goes on being served"
    with service(releases, tmp_path / "items", first.address) as second:
        assert eventually(lambda: holds(index, NEW + 1) and not holds(index, NEW))
        assert not holds(index, known)
        second.delete(NEW + 1)
        assert eventually(lambda: not holds(index, NEW + 1))
        assert index.num_items == 299
        # A retrieve stage that starts now knows all of it before it serves.
        restarted = Retriever.open(release).index
        ItemFollower(second.address, 1, restarted).wait()
        assert not [item for item in (known, NEW, NEW + 1) if holds(restarted, item)]


def test_pages_and_waiting(running):
    items = [items_pb2.Item(item_id=NEW + number, text=f"lantern {number}") for number in range(1_100)]
    before = running.status()
    last = running.add(*items)
    sizes, after, more = [], before.sequence, True
    while more:
        page = running.changes(1, after)
        sizes.append(len(unpack_changes(page)))
        after, more = page.sequence, page.more
    assert (sizes, after) == ([512, 512, 76], last)
    assert running.changes(1, after, wait_ms=50).item_ids == b""
    held = running.stub.GetChanges.future(
        items_pb2.GetChangesRequest(release=2, after_sequence=after, wait_ms=10_000), timeout=30
    )
    told = running.delete(NEW)
    answer = held.result()
    assert (answer.sequence, unpack_changes(answer).deleted.tolist()) == (told, [True])
    status = running.status()
    added, deleted = status.num_added - before.num_added, status.num_deleted - before.num_deleted
    assert (status.sequence, added, deleted) == (told, 1_099, 1)
    assert list(status.open_releases) == [1, 2]


def test_an_export_reads_the_log_or_asks_the_service(releases, tmp_path):
    with service(releases, tmp_path / "items") as running:
        width = open_release(releases, 1).content_dim
        running.add(*(items_pb2.Item(item_id=NEW + number, text="lantern", title="L") for number in range(300)))
        running.add(items_pb2.Item(item_id=NEW, embedding=range(width)))
        last = running.delete(NEW + 1, 17)
        read, asked = items_at(str(tmp_path / "items")), items_at(running.address)
        assert len(read) == len(asked) == 301
        for one, other in zip(read, asked, strict=True):
            np.testing.assert_array_equal(one.embedding, other.embedding)
            assert {**vars(one), "embedding": None} == {**vars(other), "embedding": None}
        assert [(item.item_id, item.deleted) for item in asked[-2:]] == [(NEW + 1, True), (17, True)]
        assert asked[-1].sequence == last
    with pytest.raises(Unavailable, match="is unavailable"):
        items_at(running.address)
    with pytest.raises(InvalidConfig, match="--items has value 'nothing'; allowed: the folder of an item log, or"):
        items_at("nothing")


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({}, r"items\[1\] of text and embedding has value 'neither'; allowed: one of them"),
        ({"text": "oak", "embedding": [1.0]}, "has value 'both'; allowed: one of them"),
        ({"text": " !? "}, r"items\[1\].text has value ' !\? '; allowed: a text with letters or digits"),
        ({"text": "oak " * 2_501}, r"items\[1\].text has value '10004 characters'; allowed: at most 10000"),
        ({"text": "oak", "title": "t" * 1_001}, r"items\[1\].title has value '1001 characters'; allowed: at most 1000"),
        ({"embedding": [1.0, float("nan")]}, r"items\[1\].embedding has value 'NaN or infinity'"),
        ({"embedding": [1.0, 2.0]}, r"items\[1\].embedding has value '2 numbers'; allowed: \d+, as the open releases"),
    ],
)
def test_what_is_no_item_is_refused_with_its_place(running, item, says):
    before = running.status()
    with pytest.raises(grpc.RpcError, match=says) as caught:
        running.add(items_pb2.Item(item_id=1, text="oak"), items_pb2.Item(item_id=2, **item))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert running.status() == before, "the whole call is refused"


def test_a_release_that_is_not_open_is_unavailable(running):
    with pytest.raises(grpc.RpcError, match="release 9 is not open") as caught:
        running.changes(9)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_command_line(releases, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with service(releases, tmp_path / "items") as running:

        def pinrec(*words: str) -> str:
            return CliRunner().invoke(main, ["items", *words, "--items", running.address]).output

        assert pinrec("add", "--item", str(NEW), "--text", "oak").startswith("1 item durable as of change ")
        embedding = [1.0] * open_release(releases, 1).content_dim
        table = {"item_id": [NEW + 1, NEW + 2], "text": ["pine", "elm"], "embedding": [embedding, None]}
        pq.write_table(pa.table(table), tmp_path / "new.parquet")
        assert "2 items durable" in pinrec("add", "--from", str(tmp_path / "new.parquet"))
        assert "2 items deleted" in pinrec("delete", str(NEW), str(NEW + 1))
        assert pinrec("status").startswith("added 1, deleted 2, last change ")
        assert "releases open: 1, 2" in pinrec("status")
        assert "give either --item or --from" in pinrec("add", "--item", "1", "--from", str(tmp_path / "new.parquet"))
        pq.write_table(pa.table({"id": [1]}), tmp_path / "other.parquet")
        refused = pinrec("add", "--from", str(tmp_path / "other.parquet")).strip()
        assert refused == "Error: other.parquet has columns ['id']; needed: item_id, and text or embedding"
        assert "Error: INVALID_ARGUMENT" in pinrec("add", "--item", "1")
    assert "is unavailable" in pinrec("status")
