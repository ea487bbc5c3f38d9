"""Following the item service: a thread that asks for changes and hands them on, for whoever serves a release."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from pinrec_core.items.changes import ItemChanges
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from services.common.client import open_channel
from services.proto.items_pb2 import GetChangesRequest, GetChangesResponse
from services.proto.items_pb2_grpc import ItemServiceStub

WAIT_MS = 1_000
"""How long the service may hold a call while nothing changes: a target that is gone is noticed after that."""

_PAUSE_S = 0.05
"""Between two calls: what came meanwhile travels together. A change is taken up this much later at most."""

_RETRY_S = 0.2
_TIMEOUT_S = 30.0
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # the service bounds what it sends
    *QUICK_RECONNECT,
]

log = logging.getLogger(__name__)


class Followed(Protocol):
    """What takes up changes: the live index, the fresh items."""

    def apply(self, changes: ItemChanges) -> None:
        """Take up changes, in their order."""
        ...


class ItemFollower:
    """Keeps `target` at the state of the item service at `address`, in the vectors of one release.

    Runs on a thread of its own until `target` is gone. While the service does not answer, the target goes on with what
    it knows; the log says so once.
    """

    def __init__(self, address: str, release: int, target: Followed) -> None:
        self._address = address
        self._release = release
        self._target = weakref.ref(target)
        self._synced = threading.Event()
        self._after = 0
        self._failing = False
        threading.Thread(target=self._run, name=f"items-of-{release}", daemon=True).start()

    def wait(self) -> None:
        """Return once the target has had all changes that there were."""
        self._synced.wait()

    def _run(self) -> None:
        with open_channel(self._address, _CHANNEL_OPTIONS) as channel:
            stub = ItemServiceStub(channel)
            while self._target() is not None:
                try:
                    more = self._take(stub)
                except Exception as error:  # the edge of a thread: it must outlive whatever one answer does
                    self._note_failure(error)
                    time.sleep(_RETRY_S)
                else:
                    time.sleep(0 if more else _PAUSE_S)

    def _take(self, stub: ItemServiceStub) -> bool:
        """One call; returns whether more is waiting."""
        wait_ms = WAIT_MS if self._synced.is_set() else 0
        request = GetChangesRequest(release=self._release, after_sequence=self._after, wait_ms=wait_ms)
        answer: GetChangesResponse = stub.GetChanges(request, timeout=_TIMEOUT_S)
        target = self._target()
        if target is not None and answer.item_ids:
            target.apply(unpack_changes(answer))
        self._after = answer.sequence
        if self._failing:
            log.info("release %d: the item service answers again", self._release)
            self._failing = False
        if not answer.more:
            self._synced.set()
        return answer.more

    def _note_failure(self, error: Exception) -> None:
        if self._failing or self._target() is None:  # of a release that was closed nobody needs to know
            return
        self._failing = True
        known = "goes on with the items known" if self._synced.is_set() else "waits for the items"
        if isinstance(error, grpc.RpcError):
            said = f"{error.code().name} {error.details()}"
            log.warning("release %d %s; item service at %s: %s", self._release, known, self._address, said)
        else:
            log.error("release %d %s; changes were not taken up", self._release, known, exc_info=error)


def pack_changes(changes: ItemChanges, sequence: int, more: bool) -> GetChangesResponse:
    """Arrays as little-endian bytes."""
    return GetChangesResponse(
        sequence=sequence,
        more=more,
        item_ids=changes.item_ids.astype("<i8").tobytes(),
        deleted=changes.deleted.astype("u1").tobytes(),
        vectors=changes.vectors.astype("<f4").tobytes(),
        content=changes.content.tobytes(),
        content_scale=changes.scale.astype("<f4").tobytes(),
    )


def unpack_changes(answer: GetChangesResponse) -> ItemChanges:
    """Inverse of `pack_changes`; ValueError if the arrays do not fit each other."""
    item_ids = np.frombuffer(answer.item_ids, "<i8").astype(np.int64)
    count = len(item_ids)
    vectors: NDArray[np.float32] = np.frombuffer(answer.vectors, "<f4").astype(np.float32).reshape(count, -1)
    scale = np.frombuffer(answer.content_scale, "<f4").astype(np.float32)
    deleted = np.frombuffer(answer.deleted, "u1").astype(bool)
    if not count == len(scale) == len(deleted):
        raise ValueError(f"{count} item ids, {len(scale)} scales, {len(deleted)} flags")
    return ItemChanges(item_ids, deleted, vectors, np.frombuffer(answer.content, np.int8).reshape(count, -1), scale)
