"""The RocksDB store when things go wrong: damage, a full disk, a lost tail; and its copies."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import RocksHistoryStore, restore_store
from pinrec_core.signals.realtime.rows import encode_row

ALL = 1_000_000
"""A limit that no test reaches."""


def pin(item_id, user_id=1, text=""):
    return Event(user_id, item_id, ItemType.PIN, "save", "home", 1_000 + item_id, text=text)


def items(store, user_id=1):
    return sorted(store.read([user_id], 0, ALL).item_ids.tolist())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "realtime"


def log_of(folder):
    """The newest write-ahead log."""
    return max(folder.glob("*.log"))


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0xFF]))


def test_a_log_cut_back_to_what_was_synced_keeps_every_acknowledged_event(folder, tmp_path):
    """What a power loss may leave: at each acknowledgement the log is as long as it is then, or a little longer."""
    store = RocksHistoryStore(folder)
    sizes = []
    for item_id in range(20):
        store.append([pin(item_id), pin(item_id + 100)])
        sizes.append(log_of(folder).stat().st_size)
    assert len(set(sizes)) == 20, "each append is in the log when it is acknowledged"
    for acknowledged in (1, 2, 19, 20):
        for torn in (0, 1, 30):
            copy = tmp_path / f"cut-{acknowledged}-{torn}"
            shutil.copytree(folder, copy)
            os.truncate(log_of(copy), min(sizes[acknowledged - 1] + torn, sizes[-1]))
            reopened = RocksHistoryStore(copy)
            expected = list(range(acknowledged))
            assert items(reopened) == sorted([*expected, *(item_id + 100 for item_id in expected)])
            reopened.close()
    store.close()


_APPENDS_AND_SAYS_SO = """
import os, sys
from pathlib import Path
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import RocksHistoryStore
store = RocksHistoryStore(Path(sys.argv[1]))
for item_id in range(5):
    store.append([Event(1, item_id, ItemType.PIN, "save", "home", 1_000 + item_id)])
    os.write(1, b"acknowledged")
"""


def test_the_log_is_synced_between_each_write_and_its_acknowledgement(folder, tmp_path, requires_program):
    """By the system calls themselves: a process killed keeps its page cache, a machine without power does not."""
    requires_program("strace")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-e", "trace=write,pwrite64,writev,fsync,fdatasync", "-o", str(trace)]
    subprocess.run([*strace, sys.executable, "-c", _APPENDS_AND_SAYS_SO, str(folder)], check=True, capture_output=True)
    calls = [call for line in trace.read_text().splitlines() if (call := call_of(line))]
    first, last = calls.index("acknowledge"), len(calls) - calls[::-1].index("acknowledge")
    assert calls[first - 2 : last] == ["write", "sync", "acknowledge"] * 5


def call_of(line):
    """What a line of the trace does to the log or says on standard output; None for anything else."""
    if '"acknowledged"' in line:
        return "acknowledge"
    if re.search(r"write\w*\(\d+<[^>]*\.log>", line):
        return "write"
    return "sync" if re.search(r"f(data)?sync\(\d+<[^>]*\.log>\) += 0", line) else None


def test_damage_inside_the_log_is_said_at_opening_and_hides_no_event(folder):
    store = RocksHistoryStore(folder)
    for item_id in range(20):
        store.append([pin(item_id)])
    size = log_of(folder).stat().st_size
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    store.close()
    flip(log_of(copy), size // 2)
    with pytest.raises(Unavailable, match="realtime view cannot be opened: Corruption") as refusal:
        RocksHistoryStore(copy)
    assert str(folder.parent) not in str(refusal.value)


def test_a_damaged_table_is_said_by_the_reads_that_meet_it(folder):
    store = RocksHistoryStore(folder)
    store.append([pin(item_id, user_id) for user_id in range(100) for item_id in range(50)])
    store.close()
    RocksHistoryStore(folder).close()  # the log becomes a table
    (table,) = folder.glob("*.sst")
    flip(table, table.stat().st_size // 3)
    store = RocksHistoryStore(folder)
    outcomes = {}
    for user_id in range(100):
        try:
            outcomes[user_id] = str(items(store, user_id))
        except Unavailable as error:
            outcomes[user_id] = error.message.partition(":")[0]
    expected = {str(list(range(50))), "events could not be read"}
    assert set(outcomes.values()) == expected, "never a part of a history without a word"
    with pytest.raises(Unavailable, match="old events could not be dropped: Corruption"):
        store.expire(10**15)
    store.close()


def test_a_store_of_an_older_version_is_refused_with_words(folder, monkeypatch):
    older = b"\x01" + encode_row(pin(5))[1:]
    monkeypatch.setattr("pinrec_core.signals.realtime.rocks.encode_row", lambda event: older)
    store = RocksHistoryStore(folder)
    store.append([pin(5)])
    store.close()
    for _ in range(2):  # and nothing stays open
        with pytest.raises(InvalidData, match="holds rows of version 1; this code reads 2"):
            RocksHistoryStore(folder)


def test_a_backup_holds_what_was_acknowledged_and_is_restored_elsewhere(folder, tmp_path):
    store = RocksHistoryStore(folder)
    store.append([pin(1), pin(2)])
    store.backup(tmp_path / "backups" / "monday")
    store.append([pin(3)])
    assert restore_store(tmp_path / "backups" / "monday", tmp_path / "new" / "realtime") == 2
    restored = RocksHistoryStore(tmp_path / "new" / "realtime")
    restored.append([pin(4)])
    assert items(restored) == [1, 2, 4]
    assert items(store) == [1, 2, 3]
    restored.close()
    assert restore_store(tmp_path / "backups" / "monday", tmp_path / "again") == 2, "a backup stays as it is"
    assert [path.name for path in (tmp_path / "backups").iterdir()] == ["monday"]
    store.close()


def test_backups_beside_writers_hold_a_prefix(folder, tmp_path):
    store = RocksHistoryStore(folder)
    for number in range(5):
        store.append([pin(3 * number + one) for one in range(3)])
        store.backup(tmp_path / str(number))
    store.close()
    for number in range(5):
        assert restore_store(tmp_path / str(number), tmp_path / f"restored-{number}") == 3 * (number + 1)


def test_a_backup_takes_no_name_twice(folder, tmp_path):
    store = RocksHistoryStore(folder)
    store.append([pin(1)])
    store.backup(tmp_path / "monday")
    with pytest.raises(Unavailable, match="backup could not be made: Directory not empty"):
        store.backup(tmp_path / "monday")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monday", "realtime"], "nothing half-made stays"
    store.close()


def test_restoring_overwrites_nothing_and_refuses_what_is_damaged(folder, tmp_path):
    store = RocksHistoryStore(folder)
    store.append([pin(item_id) for item_id in range(1_000)])
    store.backup(tmp_path / "backup")
    with pytest.raises(InvalidData, match="'realtime' is not empty: stop the service that owns it"):
        restore_store(tmp_path / "backup", folder)
    store.close()
    for no_backup in (tmp_path / "tuesday", tmp_path):  # not there, and the folder of all backups
        with pytest.raises(InvalidData, match="is no backup of a realtime view"):
            restore_store(no_backup, tmp_path / "new")
    (table,) = (tmp_path / "backup").glob("*.sst")
    flip(table, table.stat().st_size // 3)
    with pytest.raises(Unavailable, match="Corruption"):
        restore_store(tmp_path / "backup", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup", "realtime"]


def test_a_full_disk_refuses_appends_reads_go_on_and_nothing_acknowledged_is_lost(folder):
    """Full = no file may grow beyond some size: the write fails in the system call, as it does on a full disk."""
    script = [sys.executable, "-c", _FULL_DISK, str(folder)]
    facts = subprocess.run(script, capture_output=True, text=True, timeout=120, check=False)
    assert facts.stderr == ""
    assert facts.stdout.splitlines() == [
        "refused: events could not be written: IO error: File too large",
        "cannot be opened anew: events could not be written: IO error: File too large",
        "too early to try again: events could not be written: IO error: File too large",
        "kept while full: True",
        "kept with space again: True",
        "kept after opening: True",
        "reads refused: []",
    ]


_FULL_DISK = """
import resource, sys, time
from pathlib import Path
from threading import Event as Flag, Thread
from pinrec_core.errors import Unavailable
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import RocksHistoryStore

store = RocksHistoryStore(Path(sys.argv[1]))
acknowledged, refused, stop = [], [], Flag()
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))

def append():
    item_id = len(acknowledged)
    store.append([Event(1, item_id, ItemType.PIN, "save", "home", 1_000 + item_id, text="x" * 1_000)])
    acknowledged.append(item_id)

def append_until_refused():
    while True:
        try:
            append()
        except Unavailable as error:
            return error

def kept():
    items = store.read([1], 0, 10_000).item_ids.tolist()
    return sorted(items) == acknowledged

def read_on():
    while not stop.wait(0.001):
        try:
            store.read([1], 0, 10)
        except Unavailable as error:
            refused.append(str(error))

reader = Thread(target=read_on)
reader.start()
limit_files(100_000)
print("refused:", append_until_refused())
limit_files(1_000)
for what in ("cannot be opened anew:", "too early to try again:"):
    print(what, append_until_refused())
print("kept while full:", kept())
limit_files(unlimited[0])
while not kept() or len(acknowledged) < 200:
    try:
        append()
    except Unavailable:
        time.sleep(0.01)
print("kept with space again:", kept())
stop.set()
reader.join()
store.close()
store = RocksHistoryStore(Path(sys.argv[1]))
print("kept after opening:", kept())
print("reads refused:", refused)
"""
