"""The item log: numbers, newest states only, restarts, kill -9, a reader beside the writer."""

import os
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from pinrec_core.errors import Unavailable
from pinrec_core.items.log import Item, ItemLog, LogCounts, read_items

ROOT = Path(__file__).resolve().parents[2]
LEAST, MOST = -(2**63), 2**63 - 1


def stopped_clock():
    return 100


@pytest.fixture
def log(tmp_path):
    log = ItemLog(tmp_path / "items", now_us=stopped_clock)
    yield log
    log.close()


def told(items):
    return [(item.sequence, item.item_id, item.text, item.deleted) for item in items]


def test_changes_come_in_their_order_from_where_one_asks(log):
    assert log.counts == LogCounts(0, 0, 0)
    assert log.put([Item(LEAST, "oak"), Item(MOST, "pine")]) == 101  # the clock says 100, then 101 is the next number
    assert log.put([Item(7, deleted=True)]) == 102
    everything = [(100, LEAST, "oak", False), (101, MOST, "pine", False), (102, 7, "", True)]
    assert told(log.changes(0, 10)) == everything
    assert told(log.changes(100, 10)) == everything[1:]
    assert told(log.changes(0, 2)) == everything[:2]
    assert log.changes(102, 10) == []
    assert log.counts == LogCounts(102, 2, 1)


def test_only_the_newest_state_of_an_item_is_kept(log):
    log.put([Item(1, "oak"), Item(2, "pine")])
    log.put([Item(1, deleted=True)])
    assert told(log.changes(0, 10)) == [(101, 2, "pine", False), (102, 1, "", True)]
    assert log.counts == LogCounts(102, 1, 1)
    log.put([Item(1, "elm"), Item(1, "ash")])  # in one call the last one counts
    assert told(log.changes(0, 10)) == [(101, 2, "pine", False), (103, 1, "ash", False)]
    assert log.counts == LogCounts(103, 2, 0)
    assert log.put([]) == 103


def test_all_that_an_item_has_comes_back(log):
    embedding = np.array([0.5, -1e-30, 3e38], np.float32)
    log.put([Item(1, "crème brûlée", "Ω", embedding), Item(2)])
    first, second = log.changes(0, 10)
    assert (first.text, first.title) == ("crème brûlée", "Ω")
    np.testing.assert_array_equal(first.embedding, embedding)
    assert (second.text, second.title, len(second.embedding)) == ("", "", 0)


def test_a_restart_keeps_everything(tmp_path):
    log = ItemLog(tmp_path / "items", now_us=stopped_clock)
    log.put([Item(1, "oak"), Item(2, deleted=True)])
    log.close()
    log = ItemLog(tmp_path / "items", now_us=stopped_clock)
    assert log.counts == LogCounts(101, 1, 1)
    assert log.put([Item(3, "pine")]) == 102
    assert told(log.changes(0, 10)) == [(100, 1, "oak", False), (101, 2, "", True), (102, 3, "pine", False)]
    log.close()


def test_a_log_begun_anew_gives_no_number_twice(tmp_path):
    clock = count(1_000, 50).__next__
    first = ItemLog(tmp_path / "first", now_us=clock)
    last = first.put([Item(item, "oak") for item in range(100)])
    first.close()
    second = ItemLog(tmp_path / "second", now_us=clock)
    assert second.put([Item(1, "oak")]) > last
    second.close()


def test_one_owner_and_readers_beside_it(tmp_path):
    log = ItemLog(tmp_path / "items")
    log.put([Item(1, "oak")])
    log.put([Item(1, "elm"), Item(2, deleted=True)])
    with pytest.raises(Unavailable, match="item log cannot be opened: another process owns it"):
        ItemLog(tmp_path / "items")
    assert [(item.item_id, item.text, item.deleted) for item in read_items(tmp_path / "items")] == [
        (1, "elm", False),
        (2, "", True),
    ]
    log.close()
    with pytest.raises(Unavailable, match="item log cannot be opened"):
        read_items(tmp_path / "nothing")


WRITER = """
import sys
from pathlib import Path
from pinrec_core.items.log import Item, ItemLog
log = ItemLog(Path(sys.argv[1]))
for item in range(1_000_000):
    log.put([Item(item % 50, f"version {item}"), Item(1_000 + item, deleted=True)])
    print(item, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "items")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as writer:
        for line in writer.stdout:
            if int(line) == 120:
                os.kill(writer.pid, signal.SIGKILL)
        acknowledged = int(line)
    log = ItemLog(tmp_path / "items")
    found = {item.item_id: item for item in log.changes(0, 10_000)}
    newest = {number % 50: number for number in range(acknowledged + 1)}
    assert all(int(found[item].text.split()[1]) >= number for item, number in newest.items())
    assert all(found[1_000 + number].deleted for number in range(acknowledged + 1))
    assert log.counts.num_added == 50
    assert len(found) == log.counts.num_added + log.counts.num_deleted
    log.close()
