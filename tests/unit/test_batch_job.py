import json
from datetime import date, timedelta

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec_core.batch_job.definition import ViewDefinition, derived_event_id, search_query_id
from pinrec_core.batch_job.job import JobOptions, build_batch_view
from pinrec_core.errors import InvalidConfig, InvalidData, Unavailable
from pinrec_core.event_log.contract import load_events
from pinrec_core.schema import ItemType
from pinrec_core.signals.batch_view import open_batch_view
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.view_folder import CURRENT, staging_folder, versions
from pinrec_core.text_encoder import query_item_id
from services.cli.data import data

DAY_MS = 86_400_000
DAY0 = date(2024, 5, 1)
T0 = 19_844 * DAY_MS
"""Midnight of DAY0, UTC."""
KITCHEN = query_item_id("Grüne  KÜCHE")
SCHEMA = pa.schema(
    {
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "item_type": pa.string(),
        "action": pa.string(),
        "surface": pa.string(),
        "timestamp_ms": pa.int64(),
        "event_id": pa.uint64(),
        "text": pa.string(),
    }
)


def row(user, item, time, event_id=None, action="save", surface="home"):
    return (user, item, "pin", action, surface, time, event_id, None)


def searched(user, text, time, item=0):
    return (user, item, "search_query", "search", "search", time, None, text)


def table(rows, columns=SCHEMA.names):
    return pa.table(dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True)), SCHEMA).select(list(columns))


def write_single(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), folder / "events.parquet")
    return folder


def land(folder, day, rows, file="part-0"):
    """Rows that landed `day` days after DAY0."""
    part = folder / "events" / f"day={DAY0 + timedelta(days=day)}"
    part.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows), part / f"{file}.parquet")
    return folder


def read(view, user):
    """(item, action, surface, time, event id) of a user's rows."""
    rows = view.read(user)
    columns = (rows.item_ids, rows.actions, rows.surfaces, rows.timestamps_ms, rows.event_ids)
    return [
        (item, view.actions[action], view.surfaces[surface], time, event_id)
        for item, action, surface, time, event_id in zip(*(column.tolist() for column in columns), strict=True)
    ]


def items(view, user):
    return view.read(user).item_ids.tolist()


def stored_rows(dest, version):
    """Every row of a version as it lies in its files."""
    parts = sorted((dest / str(version)).rglob("*.parquet"))
    return [
        (part.parent.name, *values.values()) for part in parts for values in pq.ParquetFile(part).read().to_pylist()
    ]


def test_each_user_has_its_events_oldest_first(tmp_path):
    rows = [
        row(7, 71, T0 + 3), row(-5, 51, T0 + 1, action="click"), row(7, 72, T0 + 1, surface="related"),
        searched(7, "grüne Küche", T0 + 2, KITCHEN), row(-5, 52, T0 + 9),
    ]  # fmt: skip
    report = build_batch_view(write_single(tmp_path / "log", rows), tmp_path / "view")
    assert (report.num_rows, report.num_set_aside, report.days) == (5, 0, ("",))
    assert report.why == "all of the log: there is no version yet"
    manifest = report.manifest
    assert (manifest.version, manifest.num_events, manifest.num_users, manifest.watermark_ms) == (1, 5, 2, T0 + 9)
    view = open_batch_view(tmp_path / "view")
    assert (view.version, view.watermark_ms, view.num_users) == (1, T0 + 9, 2)
    assert [found[:4] for found in read(view, 7)] == [
        (72, "save", "related", T0 + 1), (KITCHEN, "search", "search", T0 + 2), (71, "save", "home", T0 + 3),
    ]  # fmt: skip
    assert view.read(7).item_types.tolist() == [ItemType.PIN, ItemType.SEARCH_QUERY, ItemType.PIN]
    assert items(view, -5) == [51, 52]
    assert view.search_query(KITCHEN) == "grüne Küche"
    assert [column.dtype for column in view.columns] == [np.int64, np.uint8, np.int32, np.int32, np.int64, np.uint64]


def test_events_of_equal_time_are_by_event_id_as_unsigned(tmp_path):
    ids = [2**64 - 1, 3, 2**63, 2**63 - 1]
    build_batch_view(write_single(tmp_path / "log", [row(1, 9, T0, i) for i in ids]), tmp_path / "view")
    assert open_batch_view(tmp_path / "view").read(1).event_ids.tolist() == [3, 2**63 - 1, 2**63, 2**64 - 1]
    definition = ViewDefinition(max_events=2)
    build_batch_view(tmp_path / "log", tmp_path / "view", JobOptions(definition))
    assert open_batch_view(tmp_path / "view").read(1).event_ids.tolist() == [2**63, 2**64 - 1]


def test_derived_ids_are_those_of_an_append(tmp_path):
    rows = [row(7, 71, T0), row(7, 71, T0), row(7, 71, T0, 0), searched(7, "grüne Küche", T0 + 1)]
    build_batch_view(write_single(tmp_path / "log", rows), tmp_path / "view")
    pin = Event(7, 71, ItemType.PIN, "save", "home", T0)
    query = Event(7, KITCHEN, ItemType.SEARCH_QUERY, "search", "search", T0 + 1, text="grüne Küche")
    expected = {event.event_id for event in with_event_ids([pin, pin, pin, query])}
    assert len(expected) == 4
    assert set(open_batch_view(tmp_path / "view").read(7).event_ids.tolist()) == expected


def test_a_repeated_delivery_counts_once_also_across_days(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0, 5), row(1, 10, T0, 5), row(1, 20, T0 + 1), row(2, 10, T0, 5)])
    land(log, 1, [row(1, 10, T0, 5), row(1, 20, T0 + 1), row(1, 30, T0 + 2, 6)])
    build_batch_view(log, tmp_path / "view")
    view = open_batch_view(tmp_path / "view")
    assert (items(view, 1), items(view, 2)) == ([10, 20, 30], [10])


def test_of_rows_with_one_id_the_newest_stays_then_the_first_to_land(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0 + 5, 1), row(1, 11, T0, 2)])
    land(log, 1, [row(1, 12, T0, 1), row(1, 13, T0 + 9, 2), row(1, 5, T0 + 5, 1)])
    build_batch_view(log, tmp_path / "view")
    assert items(open_batch_view(tmp_path / "view"), 1) == [10, 13]


def test_occurrences_count_within_a_landing_day(tmp_path):
    """Twice on one day is two events; the same rows again on the next day are deliveries of these two."""
    log = land(tmp_path / "log", 0, [row(1, 10, T0)] * 2)
    land(log, 1, [row(1, 10, T0)] * 3)
    build_batch_view(log, tmp_path / "view")
    assert items(open_batch_view(tmp_path / "view"), 1) == [10, 10, 10]


def test_what_happened_after_its_landing_day_is_set_aside(tmp_path):
    end = T0 + DAY_MS
    log = land(tmp_path / "log", 0, [row(1, 10, end + 300_000), row(1, 11, end + 300_001), row(1, 12, T0)])
    report = build_batch_view(log, tmp_path / "view")
    assert (report.num_rows, report.num_set_aside) == (3, 1)
    assert report.manifest.watermark_ms == end + 300_000
    assert report.manifest.partitions["2024-05-01"]["set_aside"] == 1
    assert items(open_batch_view(tmp_path / "view"), 1) == [12, 10]


def test_a_log_without_days_ends_at_until(tmp_path):
    log = write_single(tmp_path / "log", [row(1, 10, T0), row(1, 11, T0 + 1)])
    report = build_batch_view(log, tmp_path / "view", JobOptions(until_ms=T0))
    assert (report.num_set_aside, items(open_batch_view(tmp_path / "view"), 1)) == (1, [10])


def test_a_year_before_the_watermark_is_kept_and_times_that_only_order(tmp_path):
    newest = T0 + 400 * DAY_MS
    rows = [row(1, 10, newest - 365 * DAY_MS), row(1, 11, newest - 365 * DAY_MS - 1), row(1, 12, 999_999)]
    log = write_single(tmp_path / "log", [*rows, row(2, 20, newest)])
    build_batch_view(log, tmp_path / "view")
    assert items(open_batch_view(tmp_path / "view"), 1) == [12, 10]
    build_batch_view(log, tmp_path / "view", JobOptions(ViewDefinition(days=1)))
    assert items(open_batch_view(tmp_path / "view"), 1) == [12]


def test_only_the_newest_events_of_a_user_are_kept(tmp_path):
    rows = [row(1, item, T0 + item) for item in (3, 1, 2)] + [searched(1, "old words", T0)]
    rows += [row(1, item, item) for item in (9, 7, 8)]  # times that only order
    build_batch_view(write_single(tmp_path / "log", rows), tmp_path / "view", JobOptions(ViewDefinition(max_events=2)))
    view = open_batch_view(tmp_path / "view")
    assert (items(view, 1), view.search_query(query_item_id("old words"))) == ([8, 9, 2, 3], "")


def test_a_day_more_gives_what_the_whole_log_gives(tmp_path):
    """The second day brings late, doubled and skewed events, a new user, and a spelling that comes first."""
    definition = ViewDefinition(max_events=3)
    day0 = [row(1, 10, T0 + 5, 1), row(1, 11, T0 + 6), row(1, 12, T0 + 7), row(1, 13, T0 + 8), searched(3, "Tea", T0)]
    day1 = [
        row(1, 20, T0 + 1), row(1, 13, T0 + 8), row(1, 10, T0 + DAY_MS, 1), row(1, 21, T0 + 3 * DAY_MS),
        row(2, 30, T0 + DAY_MS + 1), searched(3, "TEA", T0 + DAY_MS),
    ]  # fmt: skip
    log = land(tmp_path / "log", 0, day0)
    build_batch_view(log, tmp_path / "daily", JobOptions(definition))
    land(log, 1, day1)
    report = build_batch_view(log, tmp_path / "daily", JobOptions(definition))
    assert (report.days, report.why) == (("2024-05-02",), "the days that version 1 lacks")
    build_batch_view(log, tmp_path / "whole", JobOptions(definition))
    assert stored_rows(tmp_path / "daily", 2) == stored_rows(tmp_path / "whole", 1)
    view = open_batch_view(tmp_path / "daily")
    assert (items(view, 1), items(view, 2)) == ([12, 13, 10], [30])
    assert view.search_query(query_item_id("tea")) == "TEA"
    assert list(report.manifest.partitions) == ["2024-05-01", "2024-05-02"]


USER_ITEM = {"user": st.integers(-1, 1), "item": st.integers(0, 2), "action": st.sampled_from(["save", "click"])}
TIMES = st.integers(0, 9).map(lambda step: T0 + step * DAY_MS // 4)
EVENT = st.builds(row, time=TIMES, event_id=st.sampled_from([None, 0, 1, 2, 2**63 + 1]), **USER_ITEM) | st.builds(
    row, time=st.integers(0, 3), event_id=st.sampled_from([None, 3, 4]), **USER_ITEM
)
"""An id belongs to a time of one kind: a clock's, or an order."""
LANDED = st.lists(st.lists(EVENT, min_size=1, max_size=6), min_size=2, max_size=4)


@settings(max_examples=20, deadline=None)
@given(days=LANDED, backfilled=st.booleans(), max_events=st.sampled_from([1, 2, 2_000]), year=st.sampled_from([1, 365]))
def test_day_by_day_is_the_whole_log(tmp_path_factory, days, backfilled, max_events, year):
    """Also where days land in another order, and as a plain reading of the definition."""
    root = tmp_path_factory.mktemp("days")
    options = JobOptions(ViewDefinition(max_events, year))
    order = list(enumerate(days))
    land(root / "log", 0, [row(9, 9, T0, 9)], "first")
    build_batch_view(root / "log", root / "daily", options)
    for day, rows in reversed(order) if backfilled else order:
        land(root / "log", day + 1, rows)
        build_batch_view(root / "log", root / "daily", options)
    build_batch_view(root / "log", root / "whole", options)
    daily = stored_rows(root / "daily", max(versions(root / "daily")))
    assert daily == stored_rows(root / "whole", 1)
    assert_as_trained(root, options.definition)


def assert_as_trained(root, definition):
    """The view against the training reader, cut by hand."""
    log, view = load_events(root / "log"), open_batch_view(root / "whole")
    newest = int(log.timestamps_ms.max())
    assert view.watermark_ms == newest
    for user in np.unique(log.user_ids).tolist():
        at = np.flatnonzero(log.user_ids == user)
        times = log.timestamps_ms[at]
        timed = at[times >= max(newest - definition.days * DAY_MS, 1_000_000)]
        at = [*at[times < 1_000_000][-definition.max_events :], *timed[-definition.max_events :]]
        assert read(view, user) == [
            (
                log.item_ids[i], log.action_names[log.actions[i]], log.surface_names[log.surfaces[i]],
                log.timestamps_ms[i], log.event_ids[i],
            )
            for i in at
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"full": True}, "all of the log: asked for"),
        ({"definition": ViewDefinition(max_events=7)}, "all of the log: version 1 has another definition"),
        ({}, "nothing has landed since"),
    ],
)
def test_what_is_read_and_why(tmp_path, change, said):
    log = land(tmp_path / "log", 0, [row(1, 10, T0)])
    build_batch_view(log, tmp_path / "view")
    report = build_batch_view(log, tmp_path / "view", JobOptions(**change))
    assert report.why == said
    assert report.manifest.version == (1 if said.startswith("nothing") else 2)


def test_a_changed_day_and_another_log_are_read_in_full_and_a_day_gone_is_kept(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0)])
    build_batch_view(log, tmp_path / "view")
    land(log, 0, [row(1, 11, T0 + 1)], "part-1")
    report = build_batch_view(log, tmp_path / "view")
    assert report.why == "all of the log: day 2024-05-01 has changed since it was read"
    other = land(tmp_path / "other", 1, [row(1, 12, T0 + 2)])
    assert "version 2 is of the log" in build_batch_view(other, tmp_path / "view").why
    (other / "events" / "day=2024-05-02" / "part-0.parquet").unlink()
    land(other, 2, [row(1, 13, T0 + 3)])
    assert build_batch_view(other, tmp_path / "view").days == ("2024-05-03",)
    assert items(open_batch_view(tmp_path / "view"), 1) == [12, 13]


def test_a_damaged_version_is_not_built_upon(tmp_path):
    log, view = land(tmp_path / "log", 0, [row(1, 10, T0)]), tmp_path / "view"
    build_batch_view(log, view)
    land(log, 1, [row(1, 11, T0 + 1)])
    next((view / "1").rglob("*.parquet")).write_bytes(b"")
    assert "has 0 bytes; manifest" in build_batch_view(log, view).why
    (view / "2" / "manifest.json").unlink()
    assert build_batch_view(log, view).why == "all of the log: batch view 'view', version 2 has no manifest.json"
    (view / CURRENT).write_text("{")
    assert "current.json must say" in build_batch_view(log, view).why
    assert items(open_batch_view(view), 1) == [10, 11]


def test_older_versions_go_but_for_two(tmp_path):
    log = tmp_path / "log"
    for day in range(4):
        land(log, day, [row(1, day, T0 + day)])
        build_batch_view(log, tmp_path / "view")
    assert versions(tmp_path / "view") == [3, 4]
    assert json.loads((tmp_path / "view" / CURRENT).read_text()) == {"version": 4}
    assert items(open_batch_view(tmp_path / "view"), 1) == [0, 1, 2, 3]
    assert [path.name for path in (tmp_path / "view" / ".compiled").iterdir()] == ["4"]


def test_a_log_behind_a_url(tmp_path):
    memory = fsspec.filesystem("memory")
    rows = [row(1, 10, T0, 2**64 - 1), searched(1, "grüne Küche", T0 + 1)]
    for day, one in zip(("2024-05-01", "2024-05-02"), rows, strict=True):
        with memory.open(f"/log/events/day={day}/part-0.parquet", "wb") as file:
            pq.write_table(table([one]), file)
    with memory.open("/log/dataset.json", "wb") as file:
        file.write(b'{"actions": ["save"]}')
    build_batch_view("memory://log", tmp_path / "view")
    view = open_batch_view(tmp_path / "view")
    assert items(view, 1) == [10, KITCHEN]
    assert view.read(1).event_ids[0] == 2**64 - 1


def test_files_may_differ_in_columns_and_folders_give_columns(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0, 4)])
    part = log / "events" / "day=2024-05-02" / "surface=related"
    part.mkdir(parents=True)
    lean = table([row(1, 11, T0 + 1)], [name for name in SCHEMA.names if name not in ("event_id", "text", "surface")])
    pq.write_table(lean, part / "part-0.parquet")
    (log / "events" / "day=2024-05-01" / "surface=home").mkdir()
    (log / "events" / "day=2024-05-01" / "part-0.parquet").rename(
        log / "events" / "day=2024-05-01" / "surface=home" / "part-0.parquet"
    )
    build_batch_view(log, tmp_path / "view")
    found = read(open_batch_view(tmp_path / "view"), 1)
    assert [(item, surface) for item, _, surface, _, _ in found] == [(10, "home"), (11, "related")]
    assert found[0][4] == 4


BROKEN = {
    "column user_id: is null (1 row)": row(None, 1, T0),
    "column action: is null (1 row)": row(1, 1, T0, action=None),
    "column action: is empty (1 row)": row(1, 1, T0, action=""),
    "column item_type: is unknown; allowed: pin, search_query (1 row)": (1, 1, "video", "save", "home", T0, None, None),
    "column text: is empty for a search_query (1 row)": searched(1, "?!", T0),
    "column action: is unknown for a search_query; allowed: search (1 row)": (
        1, 1, "search_query", "save", "home", T0, None, "tea",
    ),
    "column action: is search on a pin (1 row)": row(1, 1, T0, action="search"),
    "column timestamp_ms: is negative (1 row)": row(1, 1, -1),
    "column timestamp_ms: looks like seconds, must be milliseconds since 1970 (1 row)": row(1, 1, 1_700_000_000),
    "column timestamp_ms: looks like micro- or nanoseconds, must be milliseconds since 1970 (1 row)": row(
        1, 1, T0 * 1_000
    ),
    "column action: is unknown; dataset.json says which are allowed (1 row)": row(1, 1, T0, action="it's"),
}  # fmt: skip


def test_every_breach_of_the_contract_is_counted_and_nothing_is_flipped(tmp_path):
    log = write_single(tmp_path / "log", [row(1, 10, T0)])
    (log / "dataset.json").write_text(json.dumps({"actions": ["save", "a'b\\c"]}))
    build_batch_view(log, tmp_path / "view")
    write_single(log, [row(1, 10, T0, action="a'b\\c"), *BROKEN.values()])
    with pytest.raises(InvalidData) as raised:
        build_batch_view(log, tmp_path / "view")
    for said in BROKEN:
        assert f"events, {said}" in raised.value.message
    assert raised.value.message.count("\n") == len(BROKEN) + 1
    assert open_batch_view(tmp_path / "view").version == 1
    assert sorted(path.name for path in (tmp_path / "view").iterdir()) == [".compiled", ".lock", "1", CURRENT]


def test_a_log_that_cannot_be_read_is_named(tmp_path):
    def refused(log, said):
        with pytest.raises(InvalidData, match=said):
            build_batch_view(log, tmp_path / "view")

    refused(tmp_path / "nowhere", r"events\.parquet: is missing")
    refused("nosuch://bucket/log", "cannot be listed")
    log = write_single(tmp_path / "log", [row(1, 10, T0)])
    (log / "dataset.json").write_text("[]")
    refused(log, "dataset.json: is not a JSON object")
    (log / "dataset.json").unlink()
    land(log, 0, [row(1, 10, T0)])
    refused(log, "lies beside a partitioned events/")
    (log / "events.parquet").unlink()
    pq.write_table(table([row(1, 1, T0)]), log / "events" / "loose.parquet")
    refused(log, r"loose\.parquet lies in no day= folder")
    (log / "events" / "loose.parquet").unlink()
    (log / "events" / "day=yesterday").mkdir()
    pq.write_table(table([row(1, 1, T0)]), log / "events" / "day=yesterday" / "part.parquet")
    refused(log, "day=yesterday must name a day")
    bad = log / "events" / "day=2024-05-01" / "part-0.parquet"
    (log / "events" / "day=yesterday" / "part.parquet").unlink()
    pq.write_table(table([row(1, 1, T0)]).set_column(0, "user_id", [["ann"]]), bad)
    refused(log, "column user_id: has type string, must be int64; string ids can be numbered")
    bad.write_bytes(b"no parquet")
    refused(log, r"events/day=2024-05-01/part-0\.parquet: is not a readable Parquet file")
    assert not list((tmp_path / "view").glob("[0-9]*"))


def test_logs_without_an_event_or_a_known_surface_are_refused(tmp_path):
    log = write_single(tmp_path / "log", [row(1, 1, T0)])
    with pytest.raises(InvalidData, match="has no rows to keep"):
        build_batch_view(log, tmp_path / "view", JobOptions(until_ms=0))
    write_single(tmp_path / "log", [row(1, 1, T0, surface="unknown")])
    with pytest.raises(InvalidData, match="column surface: is unknown in every row"):
        build_batch_view(log, tmp_path / "view")


def test_one_job_at_a_time_and_what_a_killed_one_left_is_removed(tmp_path):
    log, view = write_single(tmp_path / "log", [row(1, 10, T0)]), tmp_path / "view"
    with staging_folder(view) as staging:
        with pytest.raises(Unavailable, match="another batch-view job is writing to 'view'"):
            build_batch_view(log, view)
        assert staging.exists()
    (view / ".staging-killed").mkdir()
    build_batch_view(log, view)
    assert not (view / ".staging-killed").exists()


def test_a_folder_of_others_and_an_unknown_engine_are_refused(tmp_path):
    log = write_single(tmp_path / "log", [row(1, 10, T0)])
    with pytest.raises(InvalidData, match=r"holds 'events\.parquet', so it is no folder of batch views"):
        build_batch_view(log, log)
    with pytest.raises(InvalidConfig, match="engine has value 'mysql'; allowed: duckdb, spark"):
        build_batch_view(log, tmp_path / "view", JobOptions(engine="mysql"))
    for memory in ("a lot", "-1GB", "5"):
        with pytest.raises(InvalidConfig, match=f"memory has value '{memory}'; allowed: an amount like 1.5GB"):
            build_batch_view(log, tmp_path / "view", JobOptions(memory=memory))


def test_a_log_with_landing_days_takes_no_other_end(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0)])
    with pytest.raises(InvalidConfig, match=f"until_ms has value {T0}; allowed: none for a log with landing days"):
        build_batch_view(log, tmp_path / "view", JobOptions(until_ms=T0))


def test_functions_of_the_definition():
    texts = pa.array(["grüne Küche", None, "?!", "Grüne  KÜCHE", ""])
    assert search_query_id(texts).to_pylist() == [KITCHEN, None, None, KITCHEN, None]
    event = Event(7, 71, ItemType.PIN, "save", "home", T0)
    ids = [one.event_id for one in with_event_ids([event, event])]
    columns = ([7, 7], [71, 71], ["pin", "pin"], ["save", "save"], ["home", "home"], [T0, T0], [0, 1])
    derived = derived_event_id(*(pa.array(column) for column in columns))
    assert derived.to_numpy().view(np.uint64).tolist() == ids


def test_the_verb_says_what_it_did(tmp_path):
    log = land(tmp_path / "log", 0, [row(1, 10, T0), row(1, 11, T0 + 9 * DAY_MS)])
    command = ["batch-view", str(log), str(tmp_path / "view")]
    first = CliRunner().invoke(data, command)
    assert first.exit_code == 0, first.output
    assert "read all of the log: there is no version yet\n2 rows read, 1 set aside" in first.output
    assert "version 1" in first.output
    assert "1 events of 1 users" in first.output
    again = CliRunner().invoke(data, command)
    assert "nothing has landed since: version 1 stays" in again.output
    until = CliRunner().invoke(data, [*command, "--full", "--days", "3", "--max-events", "9"])
    assert "read all of the log: asked for" in until.output
    definition = json.loads((tmp_path / "view" / "2" / "manifest.json").read_text())["definition"]
    assert (definition["days"], definition["max_events"]) == (3, 9)
