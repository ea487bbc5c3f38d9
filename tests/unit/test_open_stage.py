"""Local or at a distance; the remote one against an address where nobody answers (the real one: tests/e2e)."""

from __future__ import annotations

import numpy as np
import pytest

from pinrec_core.errors import DeadlineExceeded, Unavailable
from pinrec_core.messages import EmbedItemsInput
from pinrec_core.serving.contract import EMBED_ITEMS
from pinrec_core.serving.open_stage import open_stage
from pinrec_core.serving.remote import RemoteStage
from tests.ports import free_port

MS = 1_000_000
NOW = 7_000 * MS


@pytest.fixture
def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


def embed(deadline_ns: int, remaining_ms: int = 0) -> EmbedItemsInput:
    return EmbedItemsInput(np.array([1], dtype=np.int64), 1, deadline_ns, remaining_ms)


def test_without_an_address_the_local_one_is_opened():
    def open_local(release):
        return release

    assert open_stage(EMBED_ITEMS, "", open_local) is open_local


def test_releases_share_one_remote(nobody):
    opener = open_stage(EMBED_ITEMS, nobody, lambda release: pytest.fail("opened locally"))
    assert isinstance(opener(1), RemoteStage)
    assert opener(1) is opener(2)
    opener(1).close()


def test_each_request_fails_for_its_own_reason(nobody):
    stage = RemoteStage(nobody, EMBED_ITEMS, now_ns=lambda: NOW)
    late, lost, also_late = stage.run([embed(NOW), embed(NOW + 5_000 * MS), embed(0, remaining_ms=0)])
    assert isinstance(late, DeadlineExceeded)
    assert isinstance(also_late, DeadlineExceeded)
    assert isinstance(lost, Unavailable)
    assert nobody not in lost.message
    stage.close()
