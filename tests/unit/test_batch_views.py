import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.batch_job.job import build_batch_view
from pinrec_core.errors import InvalidData
from pinrec_core.signals import compiled_view
from pinrec_core.signals.batch_view import COMPILED, BatchView, open_batch_view
from pinrec_core.signals.batch_views import BatchViews
from pinrec_core.signals.view_folder import CURRENT, ViewManifest, publish, read_manifest, staging_folder

T0 = 1_700_000_000_000
LOOK_S = 0.005


def build(tmp_path, *item_ids, users=(7, -5, 2**63 - 1)):
    """The next version: every user has saved the items in this order. Returns the folder of batch views."""
    (tmp_path / "log").mkdir(parents=True, exist_ok=True)
    rows = [(user, item, T0 + place) for user in users for place, item in enumerate(item_ids)]
    columns = zip(("user_id", "item_id", "timestamp_ms"), zip(*rows, strict=True), strict=True)
    names = {"item_type": ["pin"] * len(rows), "action": ["save"] * len(rows), "surface": ["home"] * len(rows)}
    table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns} | names)
    pq.write_table(table, tmp_path / "log" / "events.parquet")
    build_batch_view(tmp_path / "log", tmp_path / "view")
    return tmp_path / "view"


def parts(folder):
    return sorted(folder.rglob("*.parquet"))


def test_spans_say_where_the_rows_of_each_user_lie(tmp_path):
    view = open_batch_view(build(tmp_path, 10, 20))
    starts, ends = view.spans(np.array([7, 0, 2**63 - 1, -5, -(2**63), 7]))
    assert (starts.dtype, ends.dtype) == (np.int64, np.int64)
    assert (ends - starts).tolist() == [2, 0, 2, 2, 0, 2]
    assert view.columns.item_ids[starts[0] : ends[0]].tolist() == [10, 20]
    assert sorted({*starts[[0, 2, 3]].tolist()}) == [0, 2, 4]
    assert view.read(7).timestamps_ms.tolist() == [T0, T0 + 1]
    for user_id in (-(2**63), 0):
        assert [len(column) for column in view.read(user_id)] == [0] * 6


def test_an_empty_view_knows_nobody():
    view = BatchView.empty()
    assert (view.version, view.watermark_ms, view.num_users, view.search_query(1)) == (0, 0, 0, "")
    starts, ends = view.spans(np.array([1, 2]))
    assert (starts.tolist(), ends.tolist()) == ([0, 0], [0, 0])
    assert [len(column) for column in view.read(1)] == [0] * 6


def test_a_replaced_view_stays_readable(tmp_path):
    old = open_batch_view(build(tmp_path, 10))
    for item in (20, 30, 40):
        new = open_batch_view(build(tmp_path, item))
    assert not (tmp_path / "view" / "1").exists()
    assert not (tmp_path / "view" / COMPILED / "1").exists()
    assert (old.read(7).item_ids.tolist(), new.read(7).item_ids.tolist()) == ([10], [40])


def test_arrays_are_compiled_once_into_a_folder_of_ones_own(tmp_path, monkeypatch):
    dest, cache = build(tmp_path, 10), tmp_path / "cache"
    compiled = []
    compile_arrays = compiled_view._compile

    def counted(*arguments):
        compiled.append(arguments)
        compile_arrays(*arguments)

    monkeypatch.setattr(compiled_view, "_compile", counted)
    for _ in range(2):
        assert open_batch_view(dest, cache).read(7).item_ids.tolist() == [10]
    assert len(compiled) == 1
    assert not (dest / COMPILED).exists()
    assert [path.name for path in cache.iterdir()] == ["1"]


@pytest.mark.parametrize("name", ["item_ids.npy", "ends.npy", "compiled.json"])
@pytest.mark.parametrize("change", [lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-1], None])
def test_damaged_arrays_are_compiled_again(tmp_path, name, change):
    dest = build(tmp_path, 10, 20)
    open_batch_view(dest)
    path = dest / COMPILED / "1" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    assert open_batch_view(dest).read(7).item_ids.tolist() == [10, 20]


@pytest.mark.parametrize("facts", [{"files": 1}, {"files": {}}, {"view": None}, {"format": 0}])
def test_facts_of_another_shape_are_compiled_again(tmp_path, facts):
    dest = build(tmp_path, 10)
    open_batch_view(dest)
    change_json(dest / COMPILED / "1" / "compiled.json", **facts)
    assert open_batch_view(dest).read(7).item_ids.tolist() == [10]


def test_arrays_of_another_view_with_the_same_number_are_compiled_again(tmp_path):
    one, other = build(tmp_path / "one", 10), build(tmp_path / "other", 20)
    assert open_batch_view(one, tmp_path / "cache").read(7).item_ids.tolist() == [10]
    assert open_batch_view(other, tmp_path / "cache").read(7).item_ids.tolist() == [20]


def test_damaged_parquet_is_refused_with_the_file(tmp_path):
    dest = build(tmp_path, 10)
    part = parts(dest)[0]
    name, data = str(part.relative_to(dest / "1")), part.read_bytes()

    def refused(said):
        with pytest.raises(InvalidData, match=said) as raised:
            open_batch_view(dest)
        assert name in raised.value.message

    part.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    refused("does not match its sha256")
    part.write_bytes(data[:-1])
    refused(r"has \d+ bytes; manifest: \d+")
    part.unlink()
    refused("cannot be read: No such file")


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_manifest_or_current_of_another_shape_is_refused(tmp_path):
    dest = build(tmp_path, 10)
    manifest = dest / "1" / "manifest.json"
    for change, said in (
        ({"num_events": 9}, "3 rows; manifest: 9"),
        ({"surprise": 9}, "must have version 1 and the keys"),
        ({"version": 4}, "must have version 1"),
        ({"format": 9}, "must say format 2"),
    ):
        change_json(manifest, **change)
        with pytest.raises(InvalidData, match=said):
            open_batch_view(dest)
    manifest.write_text("{")
    with pytest.raises(InvalidData, match=r"version 1: manifest\.json is not readable JSON"):
        open_batch_view(dest)
    manifest.unlink()
    with pytest.raises(InvalidData, match=r"version 1 has no manifest\.json"):
        open_batch_view(dest)
    for text, said in (
        ("{}", "must say"),
        ("[]", "must say"),
        ("{", "must say"),
        ('{"version": 0}', "names version 0"),
    ):
        (dest / CURRENT).write_text(text)
        with pytest.raises(InvalidData, match=said):
            open_batch_view(dest)
    (dest / CURRENT).unlink()
    with pytest.raises(
        InvalidData, match="'view' holds no batch view yet: `pinrec data batch-view LOG DEST` makes one"
    ):
        open_batch_view(dest)


ROWS = {
    "user_id": [1, 1],
    "timestamp_ms": [5, 5],
    "event_id": [3, -1],
    "item_id": [10, 11],
    "item_type": ["pin"] * 2,
    "action": ["save"] * 2,
    "surface": ["home"] * 2,
    "text": pa.array([None, None], pa.string()),
}


def published(dest, *tables, **facts):
    """Versions that no job of ours would write."""
    with staging_folder(dest) as staging:
        (staging / "view").mkdir()
        for number, columns in enumerate(tables):
            pq.write_table(pa.table(columns), staging / "view" / f"{number}.parquet")
        values = {"watermark_ms": 5, "num_events": 2, "num_users": 1, "log": "x", "definition": {}, "partitions": {}}
        return publish(dest, staging / "view", ViewManifest(**{**values, **facts}), keep=2)


def test_rows_in_another_order_are_refused(tmp_path):
    def refused(said, *tables, **facts):
        manifest = published(tmp_path / "view", *tables, **facts)
        assert read_manifest(tmp_path / "view", manifest.version) == manifest
        with pytest.raises(InvalidData, match=said):
            open_batch_view(tmp_path / "view")

    refused("rows of a user are not by time and event id", {**ROWS, "event_id": [-1, 3]})
    refused("rows of a user are not by time and event id", {**ROWS, "event_id": [3, 3]})
    refused("rows of a user are not by time and event id", {**ROWS, "timestamp_ms": [6, 5]})
    refused("rows of a user are not by time and event id", {**ROWS, "timestamp_ms": [5, 6]}, ROWS, num_events=4)
    refused("rows of a user lie in two places", ROWS, {**ROWS, "user_id": [2, 2]}, ROWS, num_events=6)
    refused("lacks the column text", {name: column for name, column in ROWS.items() if name != "text"})
    published(tmp_path / "view", ROWS, {**ROWS, "timestamp_ms": [6, 6]}, {**ROWS, "user_id": [0, 2]}, num_events=6)
    view = open_batch_view(tmp_path / "view")
    assert view.read(1).event_ids.tolist() == [3, 2**64 - 1, 3, 2**64 - 1]
    assert (view.read(0).item_ids.tolist(), view.read(2).item_ids.tolist()) == ([10], [11])


def eventually(condition):
    ended = threading.Event()
    return any(condition() or ended.wait(LOOK_S) for _ in range(6_000))


def test_a_new_version_is_followed_and_whoever_holds_the_old_one_reads_on(tmp_path):
    views = BatchViews(build(tmp_path, 10), look_every_s=LOOK_S)
    first = views.wait()
    assert (first.version, first, views.problem) == (1, views.current(), "")
    for item in (20, 30, 40):
        build(tmp_path, item)
    assert eventually(lambda: views.current().version == 4)
    assert views.current().read(7).item_ids.tolist() == [40]
    assert first.read(7).item_ids.tolist() == [10]
    views.close()
    build(tmp_path, 50)
    assert views.current().version == 4


def test_a_version_that_cannot_be_opened_leaves_the_old_one_and_is_tried_again(tmp_path, caplog):
    dest = build(tmp_path, 10)
    views = BatchViews(dest, look_every_s=LOOK_S)
    views.wait()
    (dest / "new").write_text('{"version": 2}')
    (dest / "new").replace(dest / CURRENT)  # never half of it, as the job does
    assert eventually(lambda: views.problem)
    assert views.problem == "batch view 'view', version 2 has no manifest.json"
    assert views.current().version == 1
    build(tmp_path, 20)
    assert eventually(lambda: views.current().version == 2)
    assert eventually(lambda: not views.problem)
    assert caplog.text.count("version 1 goes on: batch view 'view', version 2 has no manifest.json") == 1
    views.close()


def test_a_folder_without_a_view_serves_nobody_until_it_has_one(tmp_path):
    views = BatchViews(tmp_path / "view", look_every_s=LOOK_S)
    assert views.wait().version == 0
    assert "holds no batch view yet" in views.problem
    build(tmp_path, 10)
    assert eventually(lambda: views.current().version == 1)
    views.close()


def test_without_a_folder_the_view_is_empty_for_ever():
    views = BatchViews(None)
    assert (views.wait().version, views.current().version, views.problem) == (0, 0, "")
    views.close()


def test_nothing_waits_while_a_version_is_opened(tmp_path, monkeypatch):
    dest = build(tmp_path, 10)
    views = BatchViews(dest, look_every_s=LOOK_S)
    views.wait()
    opening, may_end = threading.Event(), threading.Event()
    compile_arrays = compiled_view._compile

    def slow(*arguments):
        opening.set()
        assert may_end.wait(60)
        compile_arrays(*arguments)

    monkeypatch.setattr(compiled_view, "_compile", slow)
    build(tmp_path, 20)
    assert opening.wait(60)
    assert views.current().read(7).item_ids.tolist() == [10]
    may_end.set()
    assert eventually(lambda: views.current().version == 2)
    views.close()


def test_readers_never_see_half_of_a_version(tmp_path):
    """Eight swaps under four readers: all items of a history are of one version."""
    dest = build(tmp_path, *[1] * 50)
    views = BatchViews(dest, look_every_s=LOOK_S)
    views.wait()
    ended, seen, mixed = threading.Event(), set(), []

    def reader():
        while not ended.is_set():
            found = set(views.current().read(7).item_ids.tolist())
            seen.update(found)
            if len(found) != 1:
                mixed.append(found)

    readers = [threading.Thread(target=reader) for _ in range(4)]
    for thread in readers:
        thread.start()
    for version in range(2, 10):
        build(tmp_path, *[version] * 50)
    assert eventually(lambda: 9 in seen)
    ended.set()
    for thread in readers:
        thread.join()
    views.close()
    assert not mixed
