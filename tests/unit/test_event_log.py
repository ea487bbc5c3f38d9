import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pinrec_core.config import Config, DataConfig
from pinrec_core.data.batches import event_rows
from pinrec_core.data.dataset import open_dataset
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import check_folder, load_events, load_folder
from pinrec_core.text_encoder import query_item_id
from services.cli.data import data

T0 = 1_700_000_000_000
CATS = query_item_id("cats")


def good_events():
    return {
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [10, CATS, 20, 20, 10],
        "item_type": ["pin", "search_query", "pin", "pin", "pin"],
        "action": ["click", "search", "save", "click", "click"],
        "surface": ["home", "search", "search", "home", "home"],
        "timestamp_ms": [T0, T0 + 1, T0 + 2, T0, T0 + 5],
        "text": [None, "cats", None, None, None],
    }


def good_items():
    return {"item_id": [10, 20], "item_type": ["pin", "pin"], "embedding": [[1.0, 0.0], [0.0, 1.0]], "text": ["a", "b"]}


def write(folder, events=None, items=None):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(good_events() | (events or {})), folder / "events.parquet")
    pq.write_table(pa.table(good_items() | (items or {})), folder / "items.parquet")
    return folder


def only_problem(folder):
    problems = check_folder(folder)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_good_folder_has_no_problem(tmp_path):
    assert check_folder(write(tmp_path)) == []


ERRORS = {
    "seconds": (
        {"timestamp_ms": [t // 1000 for t in good_events()["timestamp_ms"]]}, {}, "timestamp_ms", 5,
        "events.parquet, column timestamp_ms: looks like seconds, must be milliseconds since 1970 "
        "(below 1,000,000: the order only) (5 rows; row 0: user_id 1, item_id 10, click, 1700000000,",
    ),
    "microseconds": (
        {"timestamp_ms": [t * 1000 for t in good_events()["timestamp_ms"]]}, {}, "timestamp_ms", 5,
        "looks like micro- or nanoseconds",
    ),
    "negative time": ({"timestamp_ms": [-1, T0, T0, T0, T0]}, {}, "timestamp_ms", 1, "is negative (1 row; row 0: "),
    "null user": ({"user_id": pa.array([1, None, 1, 2, None])}, {}, "user_id", 2, "is null (2 rows; row 1: "),
    "null action": ({"action": ["click", "search", None, "click", "click"]}, {}, "action", 1, "is null (1 row; row 2"),
    "empty action": ({"action": ["click", "search", "", "click", "click"]}, {}, "action", 1, "is empty"),
    "empty surface": ({"surface": ["home", "", "home", "home", "home"]}, {}, "surface", 1, "is empty"),
    "item type": (
        {"item_type": ["pin", "search_query", "pin", "board", "board"]}, {}, "item_type", 2,
        "is unknown; allowed: pin, search_query (2 rows; row 3: 'board', row 4: 'board')",
    ),
    "query action": (
        {"action": ["click", "type", "save", "click", "click"]}, {}, "action", 1,
        "is unknown for a search_query; allowed: search",
    ),
    "pin searched": (
        {"action": ["click", "search", "search", "click", "click"]}, {}, "action", 1,
        "is search on a pin",
    ),
    "query without text": ({"text": pa.nulls(5, pa.string())}, {}, "text", 1, "is empty for a search_query (1 row"),
    "query of no letters": ({"text": [None, "?!", None, None, None]}, {}, "text", 1, "is empty for a search_query"),
    "string ids": (
        {"user_id": ["ann", "ann", "ann", "bob", "bob"]}, {}, "user_id", 0,
        "has type string, must be int64; string ids can be numbered with `pinrec data map-ids`",
    ),
    "float ids": ({"item_id": [1.0, 2.0, 3.0, 4.0, 5.0]}, {}, "item_id", 0, "has type double, must be int64"),
    "times as text": (
        {"timestamp_ms": ["now"] * 5}, {}, "timestamp_ms", 0,
        "has type string, must be int64; store milliseconds since 1970",
    ),
    "NaN": (
        {}, {"embedding": [[1.0, 0.0], [float("nan"), 1.0]]}, "embedding", 1,
        "items.parquet, column embedding: holds NaN or infinity (1 row; row 1: item_id 20)",
    ),
    "infinity": ({}, {"embedding": [[float("inf"), 0.0], [0.0, 1.0]]}, "embedding", 1, "holds NaN or infinity"),
    "null in a vector": ({}, {"embedding": [[None, 0.0], [0.0, 1.0]]}, "embedding", 1, "holds NaN or infinity"),
    "ragged": (
        {}, {"embedding": [[1.0, 0.0], [0.0, 1.0, 2.0]]}, "embedding", 1,
        "has another length than the first row's 2 (1 row; row 1: item_id 20)",
    ),
    "embedding type": ({}, {"embedding": ["x", "y"]}, "embedding", 0, "has type string, must be list<float>"),
    "item of no type": ({}, {"item_type": ["pin", None]}, "item_type", 1, "is null or unknown; allowed: pin, search_"),
    "null item": ({}, {"item_id": pa.array([10, None])}, "item_id", 1, "is null"),
    "two types of one item": (
        {}, {"item_type": ["pin", "search_query"]}, "item_type", 2,
        "differs from the item's in items.parquet (2 rows; row 2:",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_each_error_names_file_column_count_and_first_rows(tmp_path, case):
    events, items, column, rows, words = ERRORS[case]
    problem = only_problem(write(tmp_path, events, items))
    assert problem.is_error
    assert (problem.column, problem.rows) == (column, rows)
    assert words in str(problem)
    with pytest.raises(InvalidData) as raised:
        open_dataset(tmp_path, Config())
    assert str(problem) in raised.value.message


@pytest.mark.parametrize("name", ["user_id", "item_id", "item_type", "action", "surface", "timestamp_ms"])
def test_missing_column(tmp_path, name):
    write(tmp_path)
    pq.write_table(pa.table({k: v for k, v in good_events().items() if k != name}), tmp_path / "events.parquet")
    problem = only_problem(tmp_path)
    assert (problem.file, problem.column) == ("events.parquet", name)
    assert "is missing (the file has " in str(problem)


def test_missing_empty_and_unreadable_files(tmp_path):
    assert "is not a folder" in str(only_problem(tmp_path / "nowhere"))
    assert [str(p) for p in check_folder(tmp_path)] == ["items.parquet: is missing", "events.parquet: is missing"]
    write(tmp_path)
    (tmp_path / "items.parquet").write_bytes(b"no parquet")
    assert str(only_problem(tmp_path)) == "items.parquet: is not a readable Parquet file"
    pq.write_table(pa.table(good_items()).slice(0, 0), tmp_path / "items.parquet")
    assert str(only_problem(tmp_path)) == "items.parquet: has no rows"
    write(tmp_path)
    pq.write_table(pa.table(good_events()).slice(0, 0), tmp_path / "events.parquet")
    assert str(only_problem(tmp_path)) == "events.parquet: has no rows"


def test_dataset_json_is_held_to_its_keys_and_to_the_log(tmp_path):
    write(tmp_path)
    cases = {
        '{"outcome": []}': "has an unknown key 'outcome'; allowed: name, outcomes, search_surfaces, actions",
        '{"outcomes": "save"}': "key 'outcomes' must be a list of strings",
        '{"name": 3}': "key 'name' must be a string",
        "[]": "is not a JSON object",
        "{": "is not a JSON object",
        '{"outcomes": ["buy"]}': "outcome 'buy' never occurs; actions in the log: click, search, save",
        '{"outcomes": ["search"]}': "outcomes must not hold 'search'",
    }
    for text, words in cases.items():
        (tmp_path / "dataset.json").write_text(text)
        assert words in str(only_problem(tmp_path))


def test_actions_outside_of_the_declared_ones_are_errors(tmp_path):
    write(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"actions": ["save"]}))
    problem = only_problem(tmp_path)
    assert (problem.column, problem.rows) == ("action", 3)
    assert "is unknown; dataset.json allows: save (3 rows; row 0: user_id 1, item_id 10, click," in str(problem)


def with_row(extra):
    return {name: [*values, value] for (name, values), value in zip(good_events().items(), extra, strict=True)}


REPAIRS = {
    "repeated event id": (
        {**with_row([1, 10, "pin", "click", "home", T0, None]), "event_id": pa.array([1, 2, 3, 4, 5, 1], pa.uint64())},
        {}, 1, "column event_id: repeats that of the same user's equal row (1 row; row 5: user_id 1, item_id 10,",
        "dropped", [10, CATS, 20],
    ),
    "event id of another event": (
        {**with_row([1, 20, "pin", "click", "home", T0, None]), "event_id": pa.array([1, 2, 3, 4, 5, 1], pa.uint64())},
        {}, 1, "column event_id: repeats that of another row of the same user, which says something else (1 row; row 5",
        "dropped, the newest is kept", [10, CATS, 20],
    ),
    "disorder": (
        with_row([1, 20, "pin", "click", "home", T0 - 9, None]), {}, 1, "is older than the same user's row before it",
        "sorted by time", [20, 10, CATS, 20],
    ),
    "query id": (
        {"item_id": [10, 0, 20, 20, 10]}, {}, 1, "is not the 64-bit hash of the query's normalized text",
        "hashed from the text", [10, CATS, 20],
    ),
    "repeated item": (
        {}, {"item_id": [10, 20, 10], "item_type": ["pin"] * 3, "embedding": [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]],
             "text": ["a", "b", "c"]}, 1, "repeats an earlier row's (1 row; row 2: item_id 10)", "the first row is",
        [10, CATS, 20],
    ),
    "bare item": (
        {}, {"embedding": [[1.0, 0.0], None], "text": ["a", None]}, 1, "has neither an embedding nor text",
        "its content is zero", [10, CATS, 20],
    ),
}  # fmt: skip


NOTICES = {
    "equal rows": (
        with_row([1, 20, "pin", "save", "search", T0 + 2, None]),
        "events.parquet: equals an earlier row, and neither has an event_id (1 row; row 5: user_id 1, item_id 20, save",
        "each is an event of its own; give events an event_id if some of these are repeated deliveries",
        [10, CATS, 20, 20],
    ),
    "unlisted pin": (
        with_row([1, 99, "pin", "click", "home", T0 + 9, None]),
        "events.parquet, column item_id: is a pin that items.parquet lacks (1 row; row 5: user_id 1, item_id 99,",
        "in histories as context without content; never a target or candidate",
        [10, CATS, 20, 99],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTICES)
def test_each_notice_is_counted_and_its_rows_are_kept(tmp_path, case, caplog):
    events, words, notice, history = NOTICES[case]
    problem = only_problem(write(tmp_path, events))
    assert (problem.kind, problem.is_error, problem.rows) == ("notice", False, 1)
    assert words in str(problem)
    assert str(problem).endswith(f"; kept: {notice}")
    dataset = open_dataset(tmp_path, Config())
    assert dataset.histories.item_ids[dataset.histories.slice_of(0)].tolist() == history
    assert dataset.findings == (problem,)
    assert str(problem) in caplog.text


@pytest.mark.parametrize("case", REPAIRS)
def test_each_repair_is_counted_and_done(tmp_path, case, caplog):
    events, items, rows, words, repair, history = REPAIRS[case]
    problem = only_problem(write(tmp_path, events, items))
    assert (problem.kind, problem.is_error) == ("repair", False)
    assert problem.rows == rows
    assert words in str(problem)
    assert f"; repaired: {repair}" in str(problem)
    dataset = open_dataset(tmp_path, Config())
    assert dataset.histories.item_ids[dataset.histories.slice_of(0)].tolist() == history
    assert dataset.findings == (problem,)
    assert str(problem) in caplog.text


def test_first_of_a_repeated_item_and_zero_content_of_a_bare_one(tmp_path):
    events, items, *_ = REPAIRS["repeated item"]
    table = open_dataset(write(tmp_path / "a", events, items), Config()).items
    assert table.content[table.rows(np.array([10]))[0]].tolist() == [127, 0]
    events, items, *_ = REPAIRS["bare item"]
    table = open_dataset(write(tmp_path / "b", events, items), Config()).items
    assert table.scale[table.rows(np.array([20]))[0]] == 0


def test_items_without_embedding_take_their_text_into_the_space_of_the_others(tmp_path):
    items = {
        "item_id": [10, 20, 30],
        "item_type": ["pin"] * 3,
        "embedding": [[1.0, 0.0], [0.0, 1.0], None],
        "text": ["red apples", "blue boats", "apples"],
    }
    table = open_dataset(write(tmp_path, items=items), Config()).items
    assert table.content[table.rows(np.array([30]))[0], 0] == 127


def test_items_without_any_content_are_told_apart_by_id(tmp_path):
    write(tmp_path)
    pq.write_table(pa.table({"item_id": [10, 20], "item_type": ["pin", "pin"]}), tmp_path / "items.parquet")
    assert "has neither a column embedding nor text; repaired: content is zero" in str(only_problem(tmp_path))


def test_a_log_of_unlisted_pins_only_is_an_error(tmp_path):
    write(tmp_path, {name: values[:1] for name, values in good_events().items()} | {"item_id": [99]})
    problems = check_folder(tmp_path)
    assert [p.kind for p in problems] == ["error", "notice"]
    assert "has no event of a pin that items.parquet lists" in str(problems[0])


def test_unlisted_pins_are_context_and_never_targets(tmp_path):
    events = with_row([1, 99, "pin", "buy", "home", T0 + 9, None])
    events = {name: [*values, more] for (name, values), more in zip(
        events.items(), [1, 99, "pin", "click", "home", T0 + 10, None], strict=True
    )}  # fmt: skip
    dataset = open_dataset(write(tmp_path, events), Config())
    vocabulary = dataset.vocabulary
    assert (vocabulary.outcomes, vocabulary.actions) == (("save", "click"), ("save", "click", "buy", "search"))
    assert dataset.histories.item_ids.tolist() == [10, CATS, 20, 99, 99, 20, 10]
    assert dataset.target_outcomes.tolist() == [1, -1, 0, -1, -1, 1, 1]
    assert 99 not in dataset.items.ids
    assert dataset.popular(2)[0].tolist() == [[20, -1], [10, 20]]
    rows = event_rows(dataset.histories, dataset.items, 0, 5)
    assert rows.content[[0, 2]].tolist() == [[127, 0], [0, 127]]
    assert not rows.content[3:].any()
    assert rows.content_scale[3:].tolist() == [0, 0]


def test_an_outcome_that_only_unlisted_pins_have_is_refused(tmp_path):
    write(tmp_path, with_row([1, 99, "pin", "buy", "home", T0 + 9, None]))
    with pytest.raises(InvalidData, match=r"'buy', which no pin of .* has"):
        open_dataset(tmp_path, Config(data=DataConfig(outcomes=("buy",))))


def test_event_ids_tell_equal_rows_apart_and_find_repeated_deliveries(tmp_path):
    events = {
        **with_row([2, 10, "pin", "click", "home", T0 + 5, None]),
        "event_id": pa.array([1, 2, 3, 4, 5, 2**64 - 1], pa.uint64()),
    }
    assert check_folder(write(tmp_path, events)) == []
    events["event_id"] = pa.array([1, 2, 3, 4, 5, 5], pa.uint64())
    problem = only_problem(write(tmp_path, events))
    assert problem.repair == "dropped"
    assert problem.rows == 1


def test_an_event_id_names_an_event_of_its_user(tmp_path):
    assert check_folder(write(tmp_path, {"event_id": pa.array([1, 2, 3, 1, 2], pa.uint64())})) == []


def test_null_and_zero_are_no_event_ids(tmp_path):
    assert check_folder(write(tmp_path, {"event_id": pa.array([0, None, 0, None, 0], pa.uint64())})) == []


def test_a_given_id_that_is_a_derived_one_is_a_repeated_delivery(tmp_path):
    derived = int(load_events(write(tmp_path)).event_ids[0])
    events = with_row([1, 10, "pin", "click", "home", T0, None])
    write(tmp_path, {**events, "event_id": pa.array([0, 0, 0, 0, 0, derived], pa.uint64())})
    assert "repeats that of the same user's equal row" in str(only_problem(tmp_path))
    log = load_events(tmp_path)
    assert (len(log), log.num_repeats) == (5, 1)


def test_the_events_alone_are_those_of_the_whole_folder(tmp_path):
    events = with_row([1, 99, "pin", "click", "home", T0 - 9, None])
    alone, whole = load_events(write(tmp_path, events)), load_folder(tmp_path).events
    assert alone.listed is None
    assert whole.listed.tolist() == [False, True, False, True, True, True]
    for name in ("user_ids", "item_ids", "item_types", "actions", "surfaces", "timestamps_ms", "event_ids"):
        assert np.array_equal(getattr(alone, name), getattr(whole, name)), name


def test_times_that_only_order_are_allowed_and_equal_times_are_by_event_id(tmp_path):
    ids = pa.array([2**63, 7, 2**64 - 1, 1, 1], pa.uint64())
    dataset = open_dataset(write(tmp_path, {"timestamp_ms": [3, 3, 3, 0, 999_999], "event_id": ids}), Config())
    assert dataset.histories.item_ids.tolist() == [CATS, 10, 20, 10]


def test_other_integer_widths_and_string_encodings_are_read(tmp_path):
    events = {
        "user_id": pa.array([1, 1, 1, 2, 2], pa.int32()),
        "action": pa.array(good_events()["action"]).dictionary_encode(),
        "surface": pa.array(good_events()["surface"], pa.large_string()),
        "timestamp_ms": pa.array(good_events()["timestamp_ms"], pa.uint64()),
    }
    items = {
        "embedding": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float64(), 2)),
        "item_id": pa.array([10, 20], pa.int16()),
    }
    assert check_folder(write(tmp_path, events, items)) == []
    assert open_dataset(tmp_path, Config()).items.content.shape[1] == 2


def test_an_id_beyond_int64_is_said_to_be_unreadable(tmp_path):
    write(tmp_path, {"item_id": pa.array([10, 1, 20, 20, 2**64 - 1], pa.uint64())})
    assert "events.parquet: cannot be read: " in str(only_problem(tmp_path))


def test_partitioned_events_give_columns_by_their_folders(tmp_path):
    write(tmp_path)
    (tmp_path / "events.parquet").unlink()
    table = pa.table(good_events())
    for surface in ("home", "search"):
        part = tmp_path / "events" / "date=2024-05-01" / f"surface={surface}"
        part.mkdir(parents=True)
        rows = table.filter(pa.compute.equal(table["surface"], surface)).drop_columns(["surface"])
        pq.write_table(rows if surface == "search" else rows.drop_columns(["text"]), part / "part-0.parquet")
    assert check_folder(tmp_path) == []
    dataset = open_dataset(tmp_path, Config())
    assert dataset.histories.item_ids.tolist() == [10, CATS, 20, 20, 10]
    assert [dataset.vocabulary.surfaces[s - 1] for s in dataset.histories.surfaces] == [
        "home", "search", "search", "home", "home",
    ]  # fmt: skip
    write(tmp_path)
    assert "lies beside a partitioned events/" in str(only_problem(tmp_path))


def test_a_wrong_file_of_a_partition_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "events.parquet").unlink()
    (tmp_path / "events").mkdir()
    pq.write_table(pa.table(good_events()), tmp_path / "events" / "a.parquet")
    pq.write_table(pa.table(good_events() | {"user_id": ["x"] * 5}), tmp_path / "events" / "b.parquet")
    assert only_problem(tmp_path).file == "events/b.parquet"


def test_only_the_first_five_bad_rows_are_shown(tmp_path):
    many = {name: values * 3 for name, values in good_events().items()} | {"timestamp_ms": [-1] * 15}
    problem = only_problem(write(tmp_path, many))
    assert problem.rows == 15
    assert len(problem.first_rows) == 5
    assert "(15 rows; first: row 0: " in str(problem)


def test_check_verb_says_it_and_sets_the_exit_code(tmp_path):
    good = CliRunner().invoke(data, ["check", str(write(tmp_path / "good", REPAIRS["repeated event id"][0]))])
    assert good.exit_code == 0
    assert "repair  events.parquet, column event_id: repeats that of the same user's equal row" in good.output
    assert "keeps the event-log contract (1 repair, 0 notices)" in good.output
    assert "2 users, 2 items, 5 events" in good.output
    kept = CliRunner().invoke(data, ["check", str(write(tmp_path / "kept", NOTICES["equal rows"][0]))])
    assert kept.exit_code == 0
    assert "notice  events.parquet: equals an earlier row, and neither has an event_id" in kept.output
    assert "keeps the event-log contract (0 repairs, 1 notice)" in kept.output
    assert "2 users, 2 items, 6 events" in kept.output
    bad = CliRunner().invoke(data, ["check", str(write(tmp_path / "bad", ERRORS["seconds"][0]))])
    assert bad.exit_code == 1
    assert "ERROR   events.parquet, column timestamp_ms: looks like seconds" in bad.output


def test_a_damaged_page_is_one_sentence(tmp_path):
    path = write(tmp_path) / "events.parquet"
    content = path.read_bytes()
    at = content.index(b"PAR1", 1) if b"PAR1" in content[4:-4] else 60
    path.write_bytes(content[:at] + bytes(60) + content[at + 60 :])
    assert str(only_problem(tmp_path)).startswith("events.parquet: cannot be read: ")


def test_text_that_is_not_utf8_is_one_sentence(tmp_path):
    latin1 = pa.array([b"caf\xe9", b"tea"]).view(pa.string())
    assert str(only_problem(write(tmp_path, items={"text": latin1}))).startswith("items.parquet: cannot be read: ")


def test_a_log_without_any_known_surface_is_refused(tmp_path):
    """Nobody could ask for candidates: a request names a surface of the log."""
    problem = only_problem(write(tmp_path, {"surface": ["unknown"] * 5}))
    assert str(problem) == "events.parquet, column surface: is unknown in every row; a request must name one"
