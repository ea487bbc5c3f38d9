import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.errors import InvalidData
from pinrec_core.schema import ItemType
from pinrec_core.signals.batch_view import BatchView, compile_batch_view
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.text_encoder import query_item_id

T0 = 1_700_000_000_000
COLUMNS = ("user_id", "item_id", "item_type", "action", "surface", "timestamp_ms")
KITCHEN = query_item_id("Grüne  KÜCHE")
ROWS = [
    (7, 71, "pin", "save", "home", T0 + 3_000_000),
    (-5, 51, "pin", "click", "home", T0 + 1_000_000),
    (7, 72, "pin", "click", "related", T0 + 1_000_000),
    (7, KITCHEN, "search_query", "search", "search", T0 + 2_000_000),
    (-5, 52, "pin", "save", "related", T0 + 9_000_000),
]
TEXTS = [None, None, None, "grüne Küche", None]


def log_table(rows=ROWS, **extra):
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    integers = {name: pa.array(columns[name], pa.int64()) for name in ("user_id", "item_id", "timestamp_ms")}
    return pa.table({**columns, **integers, **extra})


@pytest.fixture
def folder(tmp_path):
    """A data folder with the log of ROWS."""
    pq.write_table(log_table(text=TEXTS), tmp_path / "events.parquet")
    return tmp_path


def compiled(folder, **options):
    compile_batch_view(folder, folder / "view", **options)
    return BatchView.open(folder / "view")


def names(view, rows):
    return [
        (view.actions[action], view.surfaces[surface])
        for action, surface in zip(rows.actions, rows.surfaces, strict=True)
    ]


def test_each_user_has_its_events_oldest_first(folder):
    view = compiled(folder)
    rows = view.read(7)
    assert rows.item_ids.tolist() == [72, KITCHEN, 71]
    assert rows.item_types.tolist() == [ItemType.PIN, ItemType.SEARCH_QUERY, ItemType.PIN]
    assert rows.timestamps_ms.tolist() == [T0 + 1_000_000, T0 + 2_000_000, T0 + 3_000_000]
    assert names(view, rows) == [("click", "related"), ("search", "search"), ("save", "home")]
    assert view.read(-5).item_ids.tolist() == [51, 52]
    assert [column.dtype for column in rows] == [np.int64, np.uint8, np.int32, np.int32, np.int64, np.uint64]


def test_an_unknown_user_has_no_rows(folder):
    view = compiled(folder)
    for user_id in (-(2**63), 0, 2**63 - 1):
        rows = view.read(user_id)
        assert [len(column) for column in rows] == [0] * 6
        assert rows.event_ids.dtype == np.uint64


def test_facts_count_and_the_watermark_is_the_newest_event(folder):
    facts = compile_batch_view(folder, folder / "view")
    assert facts == {
        "watermark_ms": T0 + 9_000_000, "num_users": 2, "num_events": 5, "num_dropped": 0, "num_search_queries": 1,
    }  # fmt: skip
    view = BatchView.open(folder / "view")
    assert (view.watermark_ms, view.num_users) == (T0 + 9_000_000, 2)


def test_derived_ids_are_those_of_an_append(folder):
    view = compiled(folder)
    event = Event(7, 71, ItemType.PIN, "save", "home", T0 + 3_000_000)
    assert view.read(7).event_ids[-1] == with_event_ids([event])[0].event_id


def test_a_search_query_keeps_its_text(folder):
    view = compiled(folder)
    assert view.search_query(KITCHEN) == "grüne Küche"
    assert view.search_query(71) == ""
    assert view.search_query(2**63 - 1) == ""


def test_a_search_query_has_the_id_of_its_text_whatever_the_log_says(tmp_path):
    rows = [(1, 0, "search_query", "search", "home", 5), (1, 33, "search_query", "search", "home", 6)]
    pq.write_table(log_table(rows, text=["grüne küche", "Grüne KÜCHE"]), tmp_path / "events.parquet")
    view = compiled(tmp_path)
    event = Event(1, KITCHEN, ItemType.SEARCH_QUERY, "search", "home", 5, text="grüne küche")
    assert view.read(1).item_ids.tolist() == [KITCHEN, KITCHEN]
    assert view.read(1).event_ids[0] == with_event_ids([event])[0].event_id
    assert view.search_query(KITCHEN) == "grüne küche"


def test_only_the_newest_events_of_a_user_are_kept(folder):
    view = compiled(folder, max_events_per_user=1)
    assert view.read(7).item_ids.tolist() == [71]
    assert view.read(-5).item_ids.tolist() == [52]
    assert view.search_query(KITCHEN) == ""  # its event is gone


def test_events_of_equal_time_keep_the_order_of_the_log(tmp_path):
    rows = [(1, item, "pin", "save", "home", time) for item, time in ((4, 2), (2, 1), (3, 1), (1, 1), (5, 2))]
    pq.write_table(log_table(rows), tmp_path / "events.parquet")
    assert compiled(tmp_path).read(1).item_ids.tolist() == [2, 3, 1, 4, 5]


def test_given_ids_are_kept_and_a_repeated_delivery_counts_once(tmp_path, caplog):
    rows = [(1, 10, "pin", "save", "home", 5), (1, 20, "pin", "save", "home", 6), (2, 10, "pin", "save", "home", 5)]
    ids = pa.array([2**64 - 1, 3, 3], pa.uint64())
    pq.write_table(
        pa.concat_tables([log_table(rows, event_id=ids), log_table(rows, event_id=ids)]), tmp_path / "events.parquet"
    )
    facts = compile_batch_view(tmp_path, tmp_path / "view")
    view = BatchView.open(tmp_path / "view")
    assert view.read(1).event_ids.tolist() == [2**64 - 1, 3]
    assert view.read(2).event_ids.tolist() == [3]
    assert (facts["num_events"], facts["num_dropped"]) == (3, 3)
    assert "column event_id: repeats that of the same user's equal row (3 rows; " in caplog.text


def test_equal_rows_without_ids_are_two_events(tmp_path):
    pq.write_table(log_table([ROWS[0], ROWS[0]]), tmp_path / "events.parquet")
    rows = compiled(tmp_path).read(7)
    event = Event(7, 71, ItemType.PIN, "save", "home", T0 + 3_000_000)
    assert rows.event_ids.tolist() == [e.event_id for e in with_event_ids([event, event])]


def test_ids_may_be_given_for_some_rows_only(tmp_path):
    ids = pa.array([0, 17, None], pa.uint64())
    table = log_table([ROWS[0], ROWS[2], ROWS[3]], event_id=ids, text=[None, None, "grüne Küche"])
    pq.write_table(table, tmp_path / "events.parquet")
    found = compiled(tmp_path).read(7).event_ids
    assert found[0] == 17
    assert len(set(found.tolist())) == 3


def test_partitioned_logs_give_the_same_view(folder, tmp_path):
    parts = tmp_path / "other" / "events"
    for day, rows in (("2024-01-01", slice(0, 2)), ("2024-01-02", slice(2, 5))):
        (parts / f"date={day}").mkdir(parents=True)
        table = log_table(ROWS[rows], text=TEXTS[rows])
        if day == "2024-01-01":  # nothing but nulls in an optional column, and another encoding of the same names
            actions = table.column("action").dictionary_encode()
            table = table.set_column(table.column_names.index("action"), "action", actions)
        pq.write_table(table, parts / f"date={day}" / "part-0.parquet")
    one, other = compiled(folder), compiled(tmp_path / "other")
    for user_id in (-5, 7):
        for mine, theirs in zip(one.read(user_id), other.read(user_id), strict=True):
            assert np.array_equal(mine, theirs)
    assert (one.actions, one.surfaces) == (other.actions, other.surfaces)
    assert other.search_query(KITCHEN) == "grüne Küche"


def test_a_file_may_lack_the_optional_columns(tmp_path):
    (tmp_path / "events").mkdir()
    pq.write_table(log_table(ROWS[:2]), tmp_path / "events" / "0.parquet")
    ids = pa.array([5, 6, 7], pa.uint64())
    pq.write_table(log_table(ROWS[2:], text=TEXTS[2:], event_id=ids), tmp_path / "events" / "1.parquet")
    view = compiled(tmp_path)
    assert view.read(7).event_ids[:2].tolist() == [5, 6]
    assert view.search_query(KITCHEN) == "grüne Küche"


def test_a_view_agrees_with_a_plain_sort_of_the_log(tmp_path):
    rng = np.random.default_rng(3)
    rows = [
        (int(user), int(item), "pin", str(rng.choice(["save", "click"])), "home", int(time))
        for user, item, time in zip(
            rng.integers(-3, 4, 500), rng.integers(0, 9, 500), rng.integers(0, 99, 500), strict=True
        )
    ]
    pq.write_table(log_table(rows), tmp_path / "events.parquet", row_group_size=64)
    view = compiled(tmp_path, max_events_per_user=40)
    for user_id in range(-3, 4):
        expected = sorted((row for row in rows if row[0] == user_id), key=lambda row: row[5])[-40:]
        found = view.read(user_id)
        assert found.item_ids.tolist() == [row[1] for row in expected]
        assert [view.actions[code] for code in found.actions] == [row[3] for row in expected]


def test_a_new_view_replaces_the_old_one_and_open_readers_keep_theirs(folder):
    old = compiled(folder)
    pq.write_table(log_table([(7, 99, "pin", "save", "home", T0 + 10_000_000)]), folder / "events.parquet")
    new = compiled(folder)
    assert old.read(7).item_ids.tolist() == [72, KITCHEN, 71]
    assert new.read(7).item_ids.tolist() == [99]
    assert sorted(path.name for path in folder.iterdir()) == ["events.parquet", "view"]


def test_a_folder_that_is_no_view_is_not_replaced(folder, tmp_path):
    with pytest.raises(InvalidData, match=r"holds 'events\.parquet', so it is no batch view"):
        compile_batch_view(folder, folder)
    assert (folder / "events.parquet").exists()
    (tmp_path / "empty").mkdir()
    compile_batch_view(folder, tmp_path / "empty")
    assert BatchView.open(tmp_path / "empty").read(7).item_ids.tolist() == [72, KITCHEN, 71]


def test_an_empty_view_knows_nobody():
    view = BatchView.empty()
    assert (view.watermark_ms, view.num_users, view.search_query(1)) == (0, 0, "")
    assert [len(column) for column in view.read(1)] == [0] * 6


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (log_table().drop_columns(["surface"]), "events.parquet, column surface: is missing"),
        (log_table().slice(0, 0), "events.parquet: has no rows"),
        (
            log_table([(1, 1, "video", "save", "home", 1)]),
            "item_type: is unknown; allowed: pin, search_.*'video'",
        ),
        (log_table([(1, 1, "pin", None, "home", 1), *ROWS], text=[None, *TEXTS]), r"action: is null \(1 row"),
        (log_table(), r"text: is empty for a search_query \(1 row; row 3"),
        (log_table().set_column(0, "user_id", [["a", "b", "c", "d", "e"]]), "user_id: has type string, must be int64"),
        (log_table().set_column(1, "item_id", [[1.5] * 5]), "item_id: has type double, must be int64"),
        (log_table().set_column(3, "action", [[1] * 5]), "action: has type int64, must be string"),
    ],
)
def test_a_log_that_breaks_the_contract_is_named(tmp_path, table, said):
    pq.write_table(table, tmp_path / "events.parquet")
    with pytest.raises(InvalidData, match=said):
        compile_batch_view(tmp_path, tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_actions_that_dataset_json_does_not_allow_are_refused_here_too(folder):
    (folder / "dataset.json").write_text(json.dumps({"actions": ["save"]}))
    with pytest.raises(InvalidData, match=r"action: is unknown; dataset.json allows: save \(2 rows"):
        compile_batch_view(folder, folder / "view")


def test_a_folder_without_a_readable_log_is_named(tmp_path):
    with pytest.raises(InvalidData, match=r"events\.parquet: is missing"):
        compile_batch_view(tmp_path, tmp_path / "view")
    (tmp_path / "events.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidData, match="is not a readable Parquet file"):
        compile_batch_view(tmp_path, tmp_path / "view")


def damage(view, name, change):
    path = view / name
    path.write_bytes(change(path.read_bytes()))


def test_a_damaged_view_is_refused_with_the_file(folder):
    compiled(folder)
    view = folder / "view"
    damage(view, "item_ids.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InvalidData, match=r"item_ids.npy does not match its sha256"):
        BatchView.open(view)
    damage(view, "item_ids.npy", lambda data: data[:-1])
    with pytest.raises(InvalidData, match=r"item_ids.npy has \d+ bytes; manifest"):
        BatchView.open(view)
    (view / "offsets.npy").unlink()
    with pytest.raises(InvalidData, match=r"offsets.npy cannot be opened"):
        BatchView.open(view, verify=False)
    (view / "item_ids.npy").unlink()
    with pytest.raises(InvalidData, match="is missing"):
        BatchView.open(view)


def test_a_view_of_another_format_is_refused(folder):
    compiled(folder)
    manifest = folder / "view" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 9}))
    with pytest.raises(InvalidData, match="must say format 1"):
        BatchView.open(folder / "view")
    manifest.write_text("{")
    with pytest.raises(InvalidData, match="not readable JSON"):
        BatchView.open(folder / "view")
    manifest.unlink()
    with pytest.raises(InvalidData, match=r"has no manifest.json"):
        BatchView.open(folder / "view")
