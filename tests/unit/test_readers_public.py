"""Readers of whole public folders, on miniatures in their publishers' layouts; every row is worked by hand."""

import gzip
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pinrec_core.config import Config
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.readers import amazon, kuairand, kuairand_full, movielens, retailrocket
from pinrec_core.data.readers.string_ids import id_of_name
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import check_folder
from services.cli.data import data

DATASETS = Path(os.environ.get("PINREC_DATASETS") or Path(__file__).resolve().parents[3] / "shared" / "datasets")
T0 = 1_650_000_000_000


def dataset_folder(name):
    if not (DATASETS / name).is_dir():
        pytest.skip(f"{name} is not under PINREC_DATASETS = {DATASETS}")
    return DATASETS / name


def rows_of(folder, *columns):
    table = pq.read_table(folder / "events.parquet", columns=list(columns))
    return [tuple(row.values()) for row in table.to_pylist()]


def texts_of(folder):
    return {row["item_id"]: row["text"] for row in pq.read_table(folder / "items.parquet").to_pylist()}


def write_csv(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


# KuaiRand

LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
    "music_id,music_type,tag"
)
FLAG_COLUMNS = LOG.split(",")


def impression(user, video, time, tab, *flags, rand=0):
    values = dict.fromkeys(FLAG_COLUMNS, 0) | {"user_id": user, "video_id": video, "time_ms": T0 + time, "tab": tab}
    return tuple((values | dict.fromkeys(flags, 1) | {"is_rand": rand}).values())


FIRST = [
    impression(9, 1, 50, 1, "is_click"),
    impression(7, 3, 40, 10, "long_view", "is_click"),
    impression(7, 1, 10, 1, "is_click", "is_comment"),
    impression(7, 1, 10, 1, "is_click", "is_comment"),  # logged twice
    impression(7, 2, 20, 1),
    impression(7, 2, 25, 1, "is_click", "is_hate"),
]
SECOND = [impression(7, 5, 60, 0, "is_forward"), impression(8, 3, 70, 1, "long_view")]
RANDOM = [impression(8, 2, 65, 1, "is_click", rand=1)]
VIDEOS = [
    (1, 11, "NORMAL", "2022-04-10", "Kmovie", 0.0, 9.0, 1.0, 1.0, 555, 9.0, '"3,17"'),
    (2, 12, "NORMAL", "2022-04-10", "Kmovie", 0.0, 9.0, 1.0, 1.0, "", "", 4),
    (3, 13, "NORMAL", "2022-04-10", "Kmovie", 0.0, "", 1.0, 1.0, 77, 9.0, ""),
    (4, 14, "NORMAL", "2022-04-10", "Kmovie", 0.0, 9.0, 1.0, 1.0, 5, 9.0, 8),
]


def kuairand_folder(folder, version="pure", suffix=""):
    names = kuairand_full.LOGS[version]
    for name in names:
        write_csv(folder / f"{name}{suffix}", LOG, *{names[0]: FIRST, names[-1]: SECOND}.get(name, []))
    write_csv(folder / f"log_random_4_22_to_5_08_{version}.csv{suffix}", LOG, *RANDOM)
    write_csv(folder / f"video_features_basic_{version}.csv{suffix}", VIDEO, *VIDEOS)
    return folder


@pytest.mark.parametrize(
    ("version", "inside", "suffix"), [("pure", "data", ""), ("1k", "", ".gz"), ("27k", "data", "")]
)
def test_kuairand_in_each_layout(tmp_path, version, inside, suffix):
    kuairand_folder(tmp_path / "source" / inside, version, suffix)
    summary = kuairand_full.convert(tmp_path / "source", tmp_path / "log")
    assert rows_of(tmp_path / "log", "user_id", "item_id", "action", "surface", "timestamp_ms", "actions") == [
        (7, 1, "like", "tab_1", T0 + 10, ["comment", "click"]),
        (7, 3, "long_view", "tab_10", T0 + 40, ["long_view", "click"]),
        (7, 5, "like", "tab_0", T0 + 60, ["forward"]),
        (8, 3, "long_view", "tab_1", T0 + 70, ["long_view"]),
        (9, 1, "click", "tab_1", T0 + 50, ["click"]),
    ]
    assert (summary.users, summary.items, summary.events) == (3, 3, {"like": 2, "long_view": 2, "click": 1})
    assert summary.left_out == {"impressions without engagement": 1, "hated": 1, "logged twice": 1}
    assert texts_of(tmp_path / "log") == {1: "tag3 tag17 author11 music555", 3: "author13 music77", 5: None}
    assert [(p.kind, p.rows) for p in check_folder(tmp_path / "log")] == [("repair", 1)]  # video 5 has no text
    dataset = open_dataset(tmp_path / "log", Config())
    assert dataset.name == f"kuairand-{version}"
    assert dataset.vocabulary.outcomes == ("like", "long_view", "click")
    assert dataset.vocabulary.surfaces == ("tab_0", "tab_1", "tab_10")


def test_kuairand_with_random_exposures_and_all_videos(tmp_path):
    source = kuairand_folder(tmp_path / "source")
    summary = kuairand_full.convert(source, tmp_path / "log", random=True, all_items=True)
    assert (8, 2, "click") in rows_of(tmp_path / "log", "user_id", "item_id", "action")
    assert list(texts_of(tmp_path / "log")) == [1, 2, 3, 4, 5]
    assert (summary.items, summary.events["click"]) == (5, 2)


def test_kuairand_names_what_is_missing(tmp_path):
    source = kuairand_folder(tmp_path / "source", "27k")
    (source / kuairand_full.LOGS["27k"][3]).unlink()
    with pytest.raises(InvalidData, match=r"does not hold log_standard_4_22_to_5_08_27k_part2\.csv"):
        kuairand_full.convert(source, tmp_path / "log")
    with pytest.raises(InvalidData, match=r"does not hold log_standard_4_08_to_4_21_pure\.csv or .*1k.* or .*27k"):
        kuairand_full.convert(tmp_path, tmp_path / "log")
    source = kuairand_folder(tmp_path / "other")
    write_csv(source / kuairand_full.LOGS["pure"][1], LOG.replace("long_view", "longview"), *SECOND)
    with pytest.raises(InvalidData, match=r"log_standard_4_22_to_5_08_pure\.csv: .*long_view"):
        kuairand_full.convert(source, tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "source"]


# RetailRocket

EVENTS = [
    (T0 + 30, 2, "view", 100, ""), (T0 + 10, 1, "view", 100, ""), (T0 + 20, 1, "addtocart", 100, ""),
    (T0 + 20, 1, "transaction", 100, 4000), (T0 + 20, 1, "transaction", 100, 4000), (T0 + 25, 1, "view", 300, ""),
]  # fmt: skip
PROPERTIES = [
    (T0 + 9, 100, "categoryid", 5), (T0 + 1, 100, "888", "1116713 960601 n277.200"), (T0 + 2, 200, "categoryid", 1),
]  # fmt: skip


def retailrocket_folder(folder):
    write_csv(folder / "events.csv", "timestamp,visitorid,event,itemid,transactionid", *EVENTS)
    header = "timestamp,itemid,property,value"
    write_csv(folder / "item_properties_part1.csv", header, *PROPERTIES)
    write_csv(folder / "item_properties_part2.csv", header, (T0 + 3, 100, "categoryid", 7))
    write_csv(folder / "category_tree.csv", "categoryid,parentid", (7, 3), (3, 1), (1, ""), (5, 1))
    return folder


def test_retailrocket(tmp_path):
    source = retailrocket_folder(tmp_path / "source")
    summary = retailrocket.convert(source, tmp_path / "log")
    assert rows_of(tmp_path / "log", "user_id", "item_id", "action", "surface", "timestamp_ms", "event_id") == [
        (1, 100, "view", "shop", T0 + 10, 2),
        (1, 100, "cart", "shop", T0 + 20, 3),
        (1, 100, "buy", "shop", T0 + 20, 4),
        (1, 300, "view", "shop", T0 + 25, 6),
        (2, 100, "view", "shop", T0 + 30, 1),
    ]
    assert (summary.users, summary.items, summary.events) == (2, 2, {"buy": 1, "cart": 1, "view": 3})
    assert summary.left_out == {"logged twice": 1}
    assert texts_of(tmp_path / "log") == {100: "category7 category3 category1", 300: None}  # the first category known
    assert [p.kind for p in check_folder(tmp_path / "log")] == ["repair"]
    history = open_dataset(tmp_path / "log", Config()).histories
    assert history.actions[:3].tolist() == [3, 2, 1], "cart before buy, as logged"
    retailrocket.convert(source, tmp_path / "all", all_items=True)
    assert texts_of(tmp_path / "all") == {100: "category7 category3 category1", 200: "category1", 300: None}


def test_retailrocket_names_an_unknown_event(tmp_path):
    source = retailrocket_folder(tmp_path / "source")
    write_csv(source / "events.csv", "timestamp,visitorid,event,itemid,transactionid", (T0, 1, "wish", 100, ""))
    with pytest.raises(InvalidData, match=r"events\.csv has the event 'wish'; allowed: transaction, addtocart, view"):
        retailrocket.convert(source, tmp_path / "log")
    (source / "category_tree.csv").unlink()
    with pytest.raises(InvalidData, match=r"does not hold category_tree\.csv"):
        retailrocket.convert(source, tmp_path / "log")


def test_the_cut_of_retailrocket(tmp_path):
    source = tmp_path / "retailrocket-mb"
    source.mkdir()
    actions = pa.array(["view", "cart", "view", "buy"]).dictionary_encode()
    log = {"user": pa.array([4, 4, 3, 4], pa.int32()), "item": pa.array([8, 8, 9, 8], pa.int32()), "action": actions,
           "timestamp": [1_433_221_969, 1_433_222_104, 1_433_000_000, 1_433_222_104]}  # fmt: skip
    pq.write_table(pa.table(log), source / retailrocket.CUT)
    pq.write_table(pa.table({"user": [4], "item": [9]}), source / retailrocket.CUT_TARGETS)
    summary = retailrocket.convert(source, tmp_path / "log")
    assert rows_of(tmp_path / "log", "user_id", "item_id", "action", "timestamp_ms") == [
        (3, 9, "view", 1_433_000_000_000), (4, 8, "view", 1_433_221_969_000), (4, 8, "cart", 1_433_222_104_000),
        (4, 8, "buy", 1_433_222_104_000),
    ]  # fmt: skip
    assert summary.left_out == {"logged twice": 0, "held-out purchases without a time": 1}
    assert (summary.users, summary.items) == (2, 2)


# Amazon reviews

DAY = 86_400


def review_2014(user, asin, day, stars=5.0):
    return {"reviewerID": user, "asin": asin, "overall": stars, "reviewText": "ok", "unixReviewTime": day * DAY}


def write_lines(path, rows, to_text=json.dumps):
    path.parent.mkdir(exist_ok=True)
    text = "".join(to_text(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


REVIEWS = [
    review_2014("B", "x1", 15_002), review_2014("A", "x2", 15_001), review_2014("A", "x1", 15_001, 1.0),
    review_2014("A", "x3", 15_000),
]  # fmt: skip
META_2014 = [
    {"asin": "x1", "title": "Mother's cream", "brand": "OPI", "categories": [["Beauty", "Skin"], ["Beauty", "Gift"]],
     "related": {"also_bought": ["x2"]}},
    {"asin": "x9", "title": "not reviewed"},
    {"asin": "x2", "categories": [["Beauty"]]},
]  # fmt: skip


def named(tmp_path, rows):
    """Rows with the names of their users and items, by the maps that were saved."""
    maps = [
        {row["id"]: row["name"] for row in pq.read_table(tmp_path / "log" / f"{which}_ids.parquet").to_pylist()}
        for which in ("user", "item")
    ]
    return [(maps[0][user], maps[1][item], *rest) for user, item, *rest in rows]


def test_amazon_2014(tmp_path):
    write_lines(tmp_path / "s" / "reviews_Beauty_5.json.gz", REVIEWS)
    write_lines(tmp_path / "s" / "meta_Beauty.json.gz", META_2014, to_text=repr)  # Python literals, as shipped
    summary = amazon.convert(tmp_path / "s", tmp_path / "log")
    rows = rows_of(tmp_path / "log", "user_id", "item_id", "action", "surface", "timestamp_ms", "event_id")
    assert sorted(named(tmp_path, rows)) == [
        ("A", "x1", "review", "shop", 15_001 * DAY * 1_000, 3), ("A", "x2", "review", "shop", 15_001 * DAY * 1_000, 2),
        ("A", "x3", "review", "shop", 15_000 * DAY * 1_000, 4), ("B", "x1", "review", "shop", 15_002 * DAY * 1_000, 1),
    ]  # fmt: skip
    assert (summary.users, summary.items, summary.events) == (2, 3, {"review": 4})
    assert texts_of(tmp_path / "log") == {
        id_of_name("x1"): "Mother's cream OPI Beauty Skin Gift", id_of_name("x2"): "Beauty", id_of_name("x3"): None
    }  # fmt: skip
    assert [p.kind for p in check_folder(tmp_path / "log")] == ["repair"]
    dataset = open_dataset(tmp_path / "log", Config())
    assert dataset.name == "amazon-Beauty_5"
    assert dataset.titles[id_of_name("x1")] == "Mother's cream"
    first = dataset.histories.slice_of(int((dataset.histories.user_ids == id_of_name("A")).argmax()))
    order = [id_of_name(name) for name in ("x3", "x2", "x1")]
    assert dataset.histories.item_ids[first].tolist() == order, "a day's reviews in the order of the file"
    amazon.convert(tmp_path / "s", tmp_path / "all", all_items=True)
    assert texts_of(tmp_path / "all")[id_of_name("x9")] == "not reviewed"


def test_amazon_2018(tmp_path):
    write_lines(tmp_path / "s" / "Beauty_5.json", REVIEWS[:1])
    meta = {"category": ["Beauty", "Skin"], "title": "Cream", "brand": "OPI", "also_buy": ["q"], "asin": "x1"}
    write_lines(tmp_path / "s" / "meta_Beauty.json", [meta, meta | {"title": "again"}])
    amazon.convert(tmp_path / "s", tmp_path / "log")
    assert texts_of(tmp_path / "log") == {id_of_name("x1"): "Cream OPI Beauty Skin"}


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv"])
def test_amazon_2023(tmp_path, kind):
    source = tmp_path / "s"
    rows = [("A", "p1", "v1", T0 + 1), ("A", "p2", "p2", T0)]
    if kind == "csv":
        write_csv(source / "All_Beauty.csv", "user_id,parent_asin,rating,timestamp",
                  *((user, parent, 5.0, time) for user, parent, _, time in rows))  # fmt: skip
    else:
        names = ("user_id", "parent_asin", "asin", "timestamp")
        write_lines(source / "All_Beauty.jsonl.gz", [dict(zip(names, row, strict=True)) for row in rows])
    meta = {
        "main_category": "All Beauty",
        "title": "Cream",
        "store": "OPI",
        "categories": ["Skin"],
        "parent_asin": "p1",
    }
    write_lines(source / "meta_All_Beauty.jsonl", [meta])
    amazon.convert(source, tmp_path / "log")
    assert named(tmp_path, rows_of(tmp_path / "log", "user_id", "item_id", "timestamp_ms")) == [
        ("A", "p2", T0), ("A", "p1", T0 + 1),
    ]  # fmt: skip
    assert texts_of(tmp_path / "log") == {id_of_name("p1"): "Cream OPI Skin", id_of_name("p2"): None}


def test_amazon_says_which_file_or_line(tmp_path):
    write_lines(tmp_path / "s" / "Beauty_5.json", [*REVIEWS, {"user": 1}])
    with pytest.raises(InvalidData, match=r"Beauty_5\.json, line 5: is no review with reviewerID"):
        amazon.convert(tmp_path / "s", tmp_path / "log")
    write_lines(tmp_path / "s" / "Beauty_5.json", REVIEWS)
    write_lines(tmp_path / "s" / "meta_Beauty.json", ['{"asin": "x1", oh'], to_text=str)
    with pytest.raises(InvalidData, match=r"meta_Beauty\.json, line 1: is neither a JSON object nor a Python literal"):
        amazon.convert(tmp_path / "s", tmp_path / "log")
    write_lines(tmp_path / "s" / "Books_5.json", REVIEWS)
    with pytest.raises(InvalidData, match=r"it has: Beauty_5\.json, Books_5\.json, meta_Beauty\.json"):
        amazon.convert(tmp_path / "s", tmp_path / "log")


def amazon_cut(folder):
    """User 1 has six reviews on one day, user 2 two on two days."""
    folder.mkdir()
    log = {
        "user": pa.array([2, 2, *[1] * 6], pa.int32()),
        "item": pa.array([3, 4, 6, 5, 4, 3, 2, 1], pa.int32()),
        "pos": pa.array([0, 1, *range(6)], pa.int16()),
        "timestamp": [DAY * 15_000, DAY * 15_001, *[DAY * 15_000] * 6],
    }
    pq.write_table(pa.table(log), folder / amazon.CUT)
    items = {"item": [1, 2, 3, 4, 5, 6], "title": ["Lacquer", None, "c", "d", "e", "f"],
             "attributes": ["OPI|Nails", "Skin", None, "", "", ""]}  # fmt: skip
    pq.write_table(pa.table(items), folder / amazon.CUT_ITEMS)
    return folder


def test_the_cut_of_amazon_keeps_its_order_or_shuffles_ties(tmp_path):
    source = amazon_cut(tmp_path / "amazon-beauty")
    summary = amazon.convert(source, tmp_path / "log")
    assert (summary.users, summary.items, summary.events) == (2, 6, {"review": 8})
    stored = open_dataset(tmp_path / "log", Config()).histories.item_ids.tolist()
    assert stored == [6, 5, 4, 3, 2, 1, 3, 4]
    assert texts_of(tmp_path / "log") == {1: "Lacquer OPI Nails", 2: "Skin", 3: "c", 4: "d", 5: "e", 6: "f"}
    shuffled = []
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "shuffled", ignore_errors=True)
        amazon.convert(source, tmp_path / "shuffled", shuffle_ties=seed)
        assert check_folder(tmp_path / "shuffled") == []
        shuffled.append(open_dataset(tmp_path / "shuffled", Config()).histories.item_ids.tolist())
    assert shuffled[0] == shuffled[1] != shuffled[2]
    for order in shuffled:
        assert order != stored
        assert sorted(order[:6]) == [1, 2, 3, 4, 5, 6]
        assert order[6:] == [3, 4], "what is no tie keeps its order"


# MovieLens in .dat files


def movielens_dat(folder, tags):
    folder.mkdir()
    (folder / "ratings.dat").write_text("2::10::2::50\n1::20::3.5::200\n1::10::5::100\n2::20::4::60\n")
    movies = "10::Star Wars: Episode IV::Comedy|Drama\n20::Léon::(no genres listed)\n"
    (folder / "movies.dat").write_bytes(movies.encode() if tags else movies.encode("latin-1"))
    if tags:
        (folder / "tags.dat").write_text("1::10::funny: very::150\n2::10::two::words::70\n")
    return folder


def test_movielens_1m_and_10m(tmp_path):
    summary = movielens.convert(movielens_dat(tmp_path / "ml-1m", tags=False), tmp_path / "log")
    assert rows_of(tmp_path / "log", "user_id", "item_id", "action", "surface", "timestamp_ms") == [
        (1, 10, "loved", "home", 100_000), (1, 20, "liked", "home", 200_000), (2, 20, "liked", "home", 60_000),
    ]  # fmt: skip
    assert texts_of(tmp_path / "log") == {10: "Star Wars: Episode IV Comedy Drama", 20: "Léon"}
    assert (summary.users, summary.items, summary.left_out["fewer than 2.5 stars"]) == (2, 2, 1)
    movielens.convert(movielens_dat(tmp_path / "ml-10M100K", tags=True), tmp_path / "ten")
    assert rows_of(tmp_path / "ten", "user_id", "action", "surface", "timestamp_ms", "text") == [
        (1, "search", "search", 99_999, "funny: very"), (1, "loved", "search", 100_000, None),
        (1, "liked", "home", 200_000, None), (2, "liked", "home", 60_000, None),
        (2, "search", "search", 70_000, "two::words"),
    ]  # fmt: skip
    assert check_folder(tmp_path / "ten") == []
    facts = json.loads((tmp_path / "ten" / "dataset.json").read_text())
    assert (facts["name"], facts["search_surfaces"]) == ("ml-10M100K", ["search"])


def test_movielens_users_lie_in_one_table_however_small(tmp_path, monkeypatch):
    source = movielens_dat(tmp_path / "ml-10M100K", tags=True)
    whole = movielens.convert(source, tmp_path / "whole")
    monkeypatch.setattr(movielens, "EventSorter", lambda dest: sorter(dest, run_rows=2, table_rows=1))
    sorter = kuairand_full.EventSorter
    assert movielens.convert(source, tmp_path / "pieces") == whole
    columns = ("user_id", "item_id", "action", "surface", "timestamp_ms", "text")
    assert rows_of(tmp_path / "pieces", *columns) == rows_of(tmp_path / "whole", *columns)
    assert pq.read_metadata(tmp_path / "pieces" / "events.parquet").num_row_groups == 2


def test_a_dat_line_without_its_fields_is_named(tmp_path):
    source = movielens_dat(tmp_path / "ml-10M100K", tags=True)
    (source / "tags.dat").write_text("1::10::ok::1\n1::10\n")
    with pytest.raises(InvalidData, match=r"tags\.dat, line 2: has 2 fields"):
        movielens.convert(source, tmp_path / "log")
    (source / "tags.dat").write_text("1::10::ok::late\n")
    with pytest.raises(InvalidData, match=r"tags\.dat: .*late"):
        movielens.convert(source, tmp_path / "log")
    (source / "ratings.dat").write_text("1::10::1::5\n")
    (source / "tags.dat").write_text("1::10::ok::1\n")  # searches alone
    with pytest.raises(InvalidData, match="holds no event that this reader keeps"):
        movielens.convert(source, tmp_path / "log")
    (source / "tags.dat").unlink()
    with pytest.raises(InvalidData, match="holds no event that this reader keeps"):
        movielens.convert(source, tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("seconds", [-5, 978_300_760_000])
def test_times_in_another_unit_are_refused(tmp_path, seconds):
    source = movielens_dat(tmp_path / "ml-10M100K", tags=False)
    (source / "ratings.dat").write_text(f"1::10::5::{seconds}\n")
    with pytest.raises(InvalidData, match=rf"timestamp_ms: has value {seconds}000; allowed: 0 to 7,258"):
        movielens.convert(source, tmp_path / "log")
    assert not (tmp_path / "log").exists()


# Verbs


def test_verbs_take_folders_and_archives(tmp_path):
    run = CliRunner()

    def write(verb, source, *options):
        done = run.invoke(data, [verb, str(source), str(tmp_path / "made"), *options])
        assert done.exit_code == 0, (done.output, done.exception)
        assert check_folder(tmp_path / "made") is not None
        shutil.rmtree(tmp_path / "made")
        return done.output

    kuairand = kuairand_folder(tmp_path / "KuaiRand-Pure" / "data")
    assert "click: 2" in write("kuairand", kuairand, "--random")
    with tarfile.open(tmp_path / "k.tar.gz", "w:gz") as archive:
        archive.add(kuairand.parent, "KuaiRand-Pure")
    assert "3 users, 5 items" in write("kuairand", tmp_path / "k.tar.gz", "--all-items")
    retailrocket_folder(tmp_path / "rr")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for path in (tmp_path / "rr").iterdir():
            archive.write(path, path.name)
    assert "buy: 1" in write("retailrocket", tmp_path / "archive.zip")
    assert "review: 8" in write("amazon", amazon_cut(tmp_path / "beauty"), "--shuffle-ties", "3")
    movielens_dat(tmp_path / "dat", tags=True)
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for path in (tmp_path / "dat").iterdir():
            archive.write(path, f"ml-10M100K/{path.name}")
    assert "search: 2" in write("movielens", tmp_path / "ml.zip")


# The cuts themselves


@pytest.mark.data
def test_retailrocket_cut_counts(tmp_path):
    summary = retailrocket.convert(dataset_folder("retailrocket-mb"), tmp_path / "log")
    assert (summary.users, summary.items, sum(summary.events.values())) == (2_174, 29_905, 97_381)
    assert summary.events == {"view": 75_374, "cart": 12_456, "buy": 9_551}
    assert {p.kind for p in check_folder(tmp_path / "log")} == {"repair"}  # no item has a text


@pytest.mark.data
def test_amazon_beauty_counts(tmp_path):
    summary = amazon.convert(dataset_folder("amazon-beauty"), tmp_path / "log")
    assert (summary.users, summary.items, summary.events) == (22_363, 12_101, {"review": 198_502})
    dataset = open_dataset(tmp_path / "log", Config())
    source = pq.read_table(dataset_folder("amazon-beauty") / amazon.CUT).sort_by(
        [("user", "ascending"), ("pos", "ascending")]
    )
    assert dataset.histories.item_ids.tolist() == source["item"].to_pylist()


# --- damaged files


def test_a_truncated_gzip_is_refused_by_name(tmp_path):
    write_csv(tmp_path / "s" / "movies.csv", "movieId,title,genres", (1, "One", "Drama"))
    text = "userId,movieId,rating,timestamp\n" + "".join(f"{user},1,5,{user}\n" for user in range(20_000))
    (tmp_path / "s" / "ratings.csv.gz").write_bytes(gzip.compress(text.encode())[:-2_000])
    with pytest.raises(InvalidData, match=r"ratings\.csv\.gz: "):
        movielens.convert(tmp_path / "s", tmp_path / "log")


def test_a_truncated_parquet_file_is_refused_by_name(tmp_path):
    (tmp_path / kuairand.LOG).write_bytes(b"PAR1 and no more")
    with pytest.raises(InvalidData, match=r"\.parquet: "):
        kuairand.convert(tmp_path, tmp_path / "log-of-it")


@pytest.mark.parametrize("rating", ["9.5", "0", "-inf"])
def test_ratings_that_are_none_are_refused(tmp_path, rating):
    write_csv(tmp_path / "s" / "movies.csv", "movieId,title,genres", (1, "One", "Drama"))
    write_csv(tmp_path / "s" / "ratings.csv", "userId,movieId,rating,timestamp", (1, 1, 5, 1), (2, 1, rating, 1))
    with pytest.raises(InvalidData, match=r"ratings\.csv, column rating: has value .*; allowed: 0\.5 to 5"):
        movielens.convert(tmp_path / "s", tmp_path / "log")


def test_a_missing_time_is_refused_by_column(tmp_path):
    write_csv(tmp_path / "s" / "movies.csv", "movieId,title,genres", (1, "One", "Drama"))
    write_csv(tmp_path / "s" / "ratings.csv", "userId,movieId,rating,timestamp", (1, 1, 5, 1), (2, 1, 5, ""))
    with pytest.raises(InvalidData, match=r"ratings\.csv, column timestamp: 1 of 2 rows .* no value"):
        movielens.convert(tmp_path / "s", tmp_path / "log")


def test_a_review_of_nobody_is_refused(tmp_path):
    write_lines(tmp_path / "s" / "Beauty_5.json", [review_2014("u", "a", 1) | {"reviewerID": None}])
    with pytest.raises(InvalidData, match=r"Beauty_5\.json, line 1: is no review with reviewerID"):
        amazon.convert(tmp_path / "s", tmp_path / "log")
