"""A store that opens late, fails and recovers; and the copies of it."""

import logging

import pytest

from pinrec_core.errors import InvalidConfig, InvalidRequest, NotSetUp, Unavailable
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import MemoryHistoryStore, RocksHistoryStore, open_store
from services.signals.backups import Backups
from services.signals.store import TendedStore

SAVED = Event(7, 1, ItemType.PIN, "save", "home", 1_700_000_000_000, event_id=1)


class Opening:
    """Opens a store in memory, unless told to fail."""

    def __init__(self, failure=None):
        self.failure = failure
        self.store = MemoryHistoryStore()

    def __call__(self):
        if self.failure:
            raise self.failure
        return self.store


def test_a_store_that_cannot_be_opened_yet_is_opened_later(caplog):
    opening = Opening(Unavailable("another process owns it"))
    store = TendedStore(opening)
    with caplog.at_level(logging.INFO):
        store.tend()
        store.tend()
        assert store.problem == "another process owns it"
        for call in (lambda: store.append([SAVED]), lambda: store.read([7], 0, 5), lambda: store.expire(5)):
            with pytest.raises(Unavailable, match="another process owns it"):
                call()
        opening.failure = None
        store.tend()
    assert store.problem == ""
    assert store.append([SAVED]) == 1
    assert store.read([7], 0, 5).item_ids.tolist() == [1]
    assert len(caplog.records) == 2, "one line when it began, one when it ended"
    assert "works again after 2 failures" in caplog.records[1].message


def test_what_waiting_does_not_mend_is_raised():
    store = TendedStore(Opening(InvalidConfig("not durable")))
    with pytest.raises(InvalidConfig, match="not durable"):
        store.tend()
    assert store.problem == "not durable"
    store.close()


def test_the_problem_is_that_of_the_last_calls(monkeypatch):
    opening = Opening()
    store = TendedStore(opening)
    store.tend()

    def full(events):
        raise Unavailable("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(opening.store, "append", full)
        with pytest.raises(Unavailable):
            store.append([SAVED])
    assert store.read([7], 0, 5).item_ids.tolist() == []
    assert store.problem == "no space left", "reads that work say nothing about writes"
    store.append([SAVED])
    assert store.problem == ""


@pytest.fixture
def rocks(tmp_path):
    store = TendedStore(lambda: open_store(str(tmp_path / "rocks")))
    store.tend()
    yield store
    store.close()


def test_a_backup_holds_what_was_acknowledged(rocks, tmp_path):
    rocks.append([SAVED])
    size, taken_ms = Backups(rocks, tmp_path / "copies").make("monday-1.0")
    rocks.append([SAVED._replace(item_id=2, event_id=2)])
    files = list((tmp_path / "copies" / "monday-1.0").iterdir())
    assert size == sum(file.stat().st_size for file in files) > 0
    assert taken_ms > 1_700_000_000_000
    copy = RocksHistoryStore(tmp_path / "copies" / "monday-1.0")
    assert copy.read([7], 0, 5).item_ids.tolist() == [1]
    copy.close()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../up", "ä", "x" * 101, "a b", "a\n"])
def test_a_name_that_could_lead_elsewhere_is_refused(rocks, tmp_path, name):
    with pytest.raises(InvalidRequest, match="name has value"):
        Backups(rocks, tmp_path / "copies").make(name)
    assert not (tmp_path / "copies").exists()


def test_a_backup_is_never_overwritten(rocks, tmp_path):
    (tmp_path / "copies" / "a").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="allowed: a name that no backup has yet"):
        Backups(rocks, tmp_path / "copies").make("a")


def test_no_folder_or_a_store_that_copies_itself_is_said(rocks, tmp_path):
    with pytest.raises(NotSetUp, match="start it with --backups FOLDER"):
        Backups(rocks, None).make("a")
    elsewhere = TendedStore(Opening())
    elsewhere.tend()
    with pytest.raises(NotSetUp, match="Kvrocks: BGSAVE"):
        Backups(elsewhere, tmp_path).make("a")
