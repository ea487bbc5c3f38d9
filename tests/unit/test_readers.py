import csv
import gzip
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pinrec_core.config import Config
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.readers import kuairand, movielens, movielens_100k, string_ids
from pinrec_core.data.readers.ratings import outcome_of_stars
from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.event_log.contract import check_folder
from pinrec_core.text_encoder import query_item_id
from services.cli.data import data

DATASETS = Path(os.environ.get("PINREC_DATASETS") or Path(__file__).resolve().parents[3] / "shared" / "datasets")


def dataset_folder(name):
    if not (DATASETS / name).is_dir():
        pytest.skip(f"{name} is not under PINREC_DATASETS = {DATASETS}")
    return DATASETS / name


def events_of(folder):
    return pq.read_table(folder / "events.parquet").to_pylist()


def items_of(folder):
    return {row["item_id"]: row for row in pq.read_table(folder / "items.parquet").to_pylist()}


def test_stars_become_outcomes_rounded_half_up():
    stars = np.array([5, 4.5, 4, 3.5, 3, 2.5, 2, 0.5])
    assert outcome_of_stars(stars).tolist() == [0, 0, 1, 1, 2, 2, -1, -1]


# MovieLens-100k

INTER = b"""user_id:token\titem_id:token\trating:float\ttimestamp:float
2\t30\t4\t881250950
1\t10\t5\t881250949
1\t20\t3\t881250948
1\t30\t2\t881250947
"""
ITEM = b"""item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
10\tToy "Story"\t1995\tAnimation Children's
20\tGoldenEye\t\tAction
30\tLion King, The\t1994\t
"""


def wheel_of(tmp_path, inter=INTER):
    path = tmp_path / movielens_100k.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", inter)
        archive.writestr("recbole/dataset_example/ml-100k/ml-100k.item", ITEM)
    return path


def test_movielens_100k(tmp_path):
    summary = movielens_100k.convert_wheel(wheel_of(tmp_path), tmp_path / "log")
    assert summary.events == {"loved": 1, "liked": 1, "watched": 1}
    assert (summary.users, summary.items, summary.left_out) == (2, 3, {"fewer than 3 stars": 1})
    assert "2 users, 3 items, 3 events" in str(summary)
    rows = events_of(tmp_path / "log")
    assert [(r["user_id"], r["item_id"], r["action"], r["timestamp_ms"]) for r in rows] == [
        (1, 20, "watched", 881250948000), (1, 10, "loved", 881250949000), (2, 30, "liked", 881250950000),
    ]  # fmt: skip
    assert {(r["item_type"], r["surface"]) for r in rows} == {("pin", "home")}
    items = items_of(tmp_path / "log")
    assert items[10]["title"] == 'Toy "Story" (1995)'
    assert items[10]["text"] == 'Toy "Story" 1995 Animation Children\'s'
    assert items[20]["title"] == "GoldenEye"
    assert items[30]["text"] == "Lion King, The 1994"
    assert check_folder(tmp_path / "log") == []
    assert open_dataset(tmp_path / "log", Config()).vocabulary.outcomes == ("loved", "liked", "watched")


def test_movielens_100k_refuses_another_wheel(tmp_path):
    wheel_of(tmp_path)
    with pytest.raises(InvalidData, match="does not have the sha256 9c9948202011"):
        movielens_100k.download_wheel(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(InvalidData, match=r"other\.whl does not hold recbole"):
        movielens_100k.convert_wheel(tmp_path / "other.whl", tmp_path / "log")
    renamed = wheel_of(tmp_path, INTER.replace(b"rating:float", b"stars:float"))
    with pytest.raises(InvalidData, match=r"lacks columns \['rating'\]"):
        movielens_100k.convert_wheel(renamed, tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_movielens_100k_says_why_pip_failed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(Unavailable, match=r"pip could not download recbole==1\.2\.1: ERROR"):
        movielens_100k.download_wheel(tmp_path / "cache")


def test_cache_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert movielens_100k.default_cache() == tmp_path / "pinrec"


# MovieLens folders

RATINGS = [("userId", "movieId", "rating", "timestamp"), (1, 10, 4.5, 100), (1, 20, 3.5, 200), (2, 10, 2.0, 50),
           (2, 20, 2.5, 60)]  # fmt: skip
MOVIES = [
    ("movieId", "title", "genres"),
    (10, "Toy Story (1995)", "Animation|Comedy"),
    (20, "Heat, The", "(no genres listed)"),
]
TAGS = [
    ("userId", "movieId", "tag", "timestamp"),
    (1, 20, "Bank job", 900),
    (1, 20, "tense", 800),
    (2, 10, "pixar", 70),
    (3, 10, "toys!", 5),
    (3, 10, "Toys", 6),
    (3, 10, "?!", 7),
]


def movielens_folder(tmp_path, tags=TAGS, movies=MOVIES):
    source = tmp_path / "ml-mini"
    source.mkdir()
    for name, rows in (("ratings", RATINGS), ("movies", movies), ("tags", tags)):
        if rows is not None:
            with gzip.open(source / f"{name}.csv.gz", "wt", newline="") as file:
                csv.writer(file).writerows(rows)
    return source


def test_movielens_tags_become_the_searches_that_found_the_movies(tmp_path):
    summary = movielens.convert(movielens_folder(tmp_path), tmp_path / "log")
    assert summary.events == {"loved": 1, "liked": 1, "watched": 1, "search": 4}
    assert summary.left_out == {
        "fewer than 2.5 stars": 1, "tags without letters": 1, "tags typed twice for a movie": 1,
    }  # fmt: skip
    assert summary.users == 3
    rows = [tuple(row.values()) for row in events_of(tmp_path / "log")]
    assert rows == [
        (1, 10, "pin", "loved", "home", 100_000, None),
        (1, query_item_id("tense"), "search_query", "search", "search", 199_998, "tense"),
        (1, query_item_id("bank job"), "search_query", "search", "search", 199_999, "Bank job"),
        (1, 20, "pin", "liked", "search", 200_000, None),
        (2, 20, "pin", "watched", "home", 60_000, None),
        (2, query_item_id("pixar"), "search_query", "search", "search", 70_000, "pixar"),
        (3, query_item_id("toys"), "search_query", "search", "search", 5_000, "toys!"),
    ]
    items = items_of(tmp_path / "log")
    assert items[10]["text"] == "Toy Story (1995) Animation Comedy"
    assert items[20]["text"] == items[20]["title"] == "Heat, The"
    vocabulary = open_small(tmp_path / "log").vocabulary
    assert (vocabulary.outcomes, vocabulary.search_surfaces) == (("loved", "liked", "watched"), ("search",))


def open_small(folder):
    """These miniatures have times in the 1970s, which the contract reads as seconds: move them to this century."""
    table = pq.read_table(folder / "events.parquet")
    later = pa.compute.add(table["timestamp_ms"], 1_500_000_000_000)
    pq.write_table(table.set_column(5, "timestamp_ms", later), folder / "events.parquet")
    assert check_folder(folder) == []
    return open_dataset(folder, Config())


def test_movielens_without_tags_has_no_search_surface(tmp_path):
    movielens.convert(movielens_folder(tmp_path, tags=None), tmp_path / "log")
    vocabulary = open_small(tmp_path / "log").vocabulary
    assert vocabulary.surfaces == ("home",)
    assert vocabulary.search_surfaces == ()
    assert "search" not in vocabulary.actions


def test_movielens_names_what_is_missing(tmp_path):
    source = movielens_folder(tmp_path, movies=[("movieId", "name", "genres"), (1, "x", "y")])
    with pytest.raises(InvalidData, match=r"movies\.csv\.gz: .*title.*; wanted columns: movieId, title, genres"):
        movielens.convert(source, tmp_path / "log")
    (source / "movies.csv.gz").unlink()
    with pytest.raises(InvalidData, match=r"does not hold movies\.csv or movies\.dat \(plain or \.gz\)"):
        movielens.convert(source, tmp_path / "log")


# KuaiRand

T0 = 1_650_000_000_000
FLAGS = ["is_click", "long_view", "is_profile_enter", "is_like", "is_follow", "is_comment", "is_forward", "is_hate"]


def kuairand_folder(tmp_path):
    impressions = [
        # user, video, ms, tab, flags raised
        (7, 1, 3, 1, ["is_click", "long_view", "is_follow"]),
        (7, 2, 2, 0, ["is_click", "long_view"]),
        (7, 3, 1, 1, []),
        (8, 1, 4, 10, ["is_profile_enter"]),
        (8, 2, 5, 10, ["is_click", "is_hate"]),
        (8, 3, 6, 1, ["is_click"]),
        (8, 3, 6, 1, ["is_click"]),
    ]
    log = {
        "user_id": [i[0] for i in impressions],
        "video_id": [i[1] for i in impressions],
        "time_ms": [T0 + i[2] for i in impressions],
        "tab": pa.array([i[3] for i in impressions], pa.int8()),
        **{flag: pa.array([int(flag in i[4]) for i in impressions], pa.int8()) for flag in FLAGS},
    }
    history = {
        "user_id": [7, 7, 7, 9],
        "pos": pa.array([1, 0, 2, 0], pa.int32()),
        "video_id": [2, 1, 3, 1],
        "long_view": pa.array([1, 0, 0, 0], pa.int8()),
        "is_like": pa.array([1, 1, 0, 0], pa.int8()),
    }
    items = {
        "video_id": [1, 2, 3], "author_id": [11, 12, None], "music_id": [5, None, None], "tag": ["3,17", None, "4"],
        "show_cnt": [9.0, 9.0, 9.0],
    }  # fmt: skip
    source = tmp_path / "kuai"
    (source / "raw").mkdir(parents=True)
    for name, columns in ((kuairand.LOG, log), (kuairand.HISTORY, history), (kuairand.ITEMS, items)):
        pq.write_table(pa.table(columns), source / name)
    return source


def test_kuairand_keeps_the_strongest_engagement_and_all_flags(tmp_path):
    summary = kuairand.convert(kuairand_folder(tmp_path), tmp_path / "log")
    rows = [
        (r["user_id"], r["item_id"], r["action"], r["surface"], r["timestamp_ms"], r["actions"])
        for r in events_of(tmp_path / "log")
    ]
    assert rows == [
        (7, 1, "like", "unknown", 0, ["like"]),
        (7, 2, "like", "unknown", 1, ["like", "long_view"]),
        (7, 2, "long_view", "tab_0", T0 + 2, ["long_view", "click"]),
        (7, 1, "like", "tab_1", T0 + 3, ["follow", "long_view", "click"]),
        (8, 1, "like", "tab_10", T0 + 4, ["profile_enter"]),
        (8, 3, "click", "tab_1", T0 + 6, ["click"]),
    ]
    assert summary.events == {"like": 4, "long_view": 1, "click": 1}
    assert summary.left_out == {
        "impressions without engagement, log": 1, "impressions without engagement, history": 2, "hated": 1,
        "logged twice": 1,
    }  # fmt: skip
    assert (summary.users, summary.items) == (2, 3)
    texts = {item: row["text"] for item, row in items_of(tmp_path / "log").items()}
    assert texts == {1: "tag3 tag17 author11 music5", 2: "author12", 3: "tag4"}
    assert check_folder(tmp_path / "log") == []
    dataset = open_dataset(tmp_path / "log", Config())
    assert dataset.vocabulary.outcomes == ("like", "long_view", "click")
    assert dataset.vocabulary.surfaces == ("tab_0", "tab_1", "tab_10")
    assert dataset.histories.surfaces[:2].tolist() == [0, 0]


def test_kuairand_names_a_missing_file_and_column(tmp_path):
    source = kuairand_folder(tmp_path)
    pq.write_table(pq.read_table(source / kuairand.ITEMS).drop_columns(["tag"]), source / kuairand.ITEMS)
    with pytest.raises(InvalidData, match=r"raw/item_features\.parquet lacks columns \['tag'\]"):
        kuairand.convert(source, tmp_path / "log")
    (source / kuairand.LOG).unlink()
    with pytest.raises(InvalidData, match=r"does not hold log_0425_0508\.parquet"):
        kuairand.convert(source, tmp_path / "log")


# String ids


def test_string_ids_are_hashed_and_their_maps_saved(tmp_path):
    source = tmp_path / "named"
    source.mkdir()
    events = {
        "user_id": ["ann", "bob", "ann"], "item_id": ["x", "y", "y"], "item_type": ["pin"] * 3,
        "action": ["buy", "see", "see"], "surface": ["home"] * 3, "timestamp_ms": [T0, T0, T0 + 1],
    }  # fmt: skip
    pq.write_table(pa.table(events), source / "events.parquet", row_group_size=2)
    items = {"item_id": ["x", "y", "z"], "item_type": ["pin"] * 3, "text": ["red", "blue", "green"]}
    pq.write_table(pa.table(items), source / "items.parquet")
    summary = string_ids.convert(source, tmp_path / "log")
    assert (summary.users, summary.items, summary.events) == (2, 3, {"buy": 1, "see": 2})
    assert check_folder(tmp_path / "log") == []
    known = {r["name"]: r["id"] for r in pq.read_table(tmp_path / "log" / "item_ids.parquet").to_pylist()}
    assert known == {name: string_ids.id_of_name(name) for name in "xyz"}
    assert [r["item_id"] for r in events_of(tmp_path / "log")] == [known["x"], known["y"], known["y"]]
    users = pq.read_table(tmp_path / "log" / "user_ids.parquet").to_pylist()
    assert [u["name"] for u in users] == ["ann", "bob"]
    assert open_dataset(tmp_path / "log", Config()).titles[known["z"]] == "green"


def test_string_ids_keep_integers_and_refuse_floats(tmp_path):
    source = tmp_path / "mixed"
    source.mkdir()
    events = {
        "user_id": [1.5], "item_id": [5], "item_type": ["pin"], "action": ["see"], "surface": ["home"],
        "timestamp_ms": [T0],
    }  # fmt: skip
    pq.write_table(pa.table({"item_id": [5], "item_type": ["pin"]}), source / "items.parquet")
    pq.write_table(pa.table(events), source / "events.parquet")
    with pytest.raises(InvalidData, match=r"events\.parquet, column user_id: has type double"):
        string_ids.convert(source, tmp_path / "log")
    pq.write_table(pa.table(events | {"user_id": ["ann"]}), source / "events.parquet")
    string_ids.convert(source, tmp_path / "log")
    assert events_of(tmp_path / "log")[0]["item_id"] == 5


# Verbs


def test_verbs_write_folders_that_check_accepts(tmp_path):
    run = CliRunner()
    sizes = ["--users", "20", "--items", "60", "--events", "400"]
    made = run.invoke(data, ["synthetic", str(tmp_path / "world"), *sizes])
    assert (made.exit_code, "20 users, 60 items, 4 topics" in made.output) == (0, True)
    assert run.invoke(data, ["check", str(tmp_path / "world")]).exit_code == 0
    kuai = run.invoke(data, ["kuairand", str(kuairand_folder(tmp_path)), str(tmp_path / "k")])
    assert (kuai.exit_code, "left out, hated: 1" in kuai.output) == (0, True)
    movies = run.invoke(data, ["movielens", str(movielens_folder(tmp_path)), str(tmp_path / "m")])
    assert (movies.exit_code, "search: 4" in movies.output) == (0, True)
    for verb in ("check", "movielens-100k", "movielens", "kuairand", "map-ids", "synthetic"):
        text = run.invoke(data, [verb, "--help"]).output
        assert len(text.splitlines()) > 8


# The logs themselves


@pytest.mark.data
def test_ml_latest_small_counts(tmp_path):
    summary = movielens.convert(dataset_folder("ml-latest-small"), tmp_path / "log")
    assert (summary.users, summary.items) == (610, 9_742)
    assert sum(summary.events.values()) - summary.events["search"] + summary.left_out["fewer than 2.5 stars"] == 100_836
    assert summary.events["search"] + summary.left_out["tags typed twice for a movie"] == 3_683
    # Two movies rated in one second and tagged alike give one query twice at one time.
    assert [(p.rows, p.kind) for p in check_folder(tmp_path / "log")] == [(4, "notice")]


@pytest.mark.data
def test_kuairand_counts(tmp_path):
    summary = kuairand.convert(dataset_folder("kuairand-pure"), tmp_path / "log")
    assert summary.items == 7_583
    assert sum(summary.events.values()) + sum(summary.left_out.values()) == 228_329 + 817_187
    assert check_folder(tmp_path / "log") == []
    dataset = open_dataset(tmp_path / "log", Config())
    assert len(dataset.vocabulary.surfaces) == 15
    assert dataset.histories.num_users == summary.users == 26_356
    assert (dataset.items.scale > 0).all()
