import numpy as np
import pyarrow.parquet as pq
import pytest

from pinrec_core.codec import dequantize
from pinrec_core.config import Config
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.synthetic import OUTCOMES, SyntheticSpec, SyntheticWorld
from pinrec_core.data.synthetic_words import TOPIC_NAMES
from pinrec_core.errors import InvalidConfig, InvalidData
from pinrec_core.event_log.contract import check_folder
from pinrec_core.schema import ItemType

SPEC = SyntheticSpec(users=400, items=400, events=12_000, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("world") / "log"
    SyntheticWorld(SPEC).write(path)
    return path


@pytest.fixture(scope="module")
def world():
    return SyntheticWorld(SPEC)


@pytest.fixture(scope="module")
def dataset(folder):
    return open_dataset(folder, Config())


def names_of(codes, names):
    return np.array(["", *names])[codes]


def test_the_log_keeps_the_contract_without_repairs(folder, dataset):
    assert check_folder(folder) == []
    assert dataset.vocabulary.outcomes == OUTCOMES
    assert dataset.vocabulary.surfaces == ("home", "related", "search")
    assert dataset.vocabulary.search_surfaces == ("search",)
    assert 0.8 * SPEC.events < dataset.histories.num_events <= SPEC.events
    assert dataset.items.content.shape[1] == SPEC.content_dim


def test_same_seed_same_files_other_seed_other_log(folder, tmp_path):
    SyntheticWorld(SPEC).write(tmp_path / "again")
    SyntheticWorld(SyntheticSpec(users=400, items=400, events=12_000, seed=6)).write(tmp_path / "other")
    for name in ("events.parquet", "items.parquet", "dataset.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert not pq.read_table(tmp_path / "other" / "events.parquet").equals(pq.read_table(folder / "events.parquet"))


def test_users_mostly_engage_with_their_interests(dataset, world):
    h = dataset.histories
    pins = h.item_types == ItemType.PIN
    user = np.repeat(h.user_ids, np.diff(h.offsets))[pins]
    topics = world.topic_of(h.item_ids[pins])
    last = np.array([np.isin(topics[user == u][-8:], world.interests_of(u)).mean() for u in h.user_ids[:200]])
    assert last.mean() > 0.8
    assert world.interests_of(1).shape == (3,)
    assert all(len(set(world.interests_of(int(u)).tolist())) == 3 for u in world.user_ids())


def test_logged_outcomes_follow_the_planted_rates(dataset, world):
    h = dataset.histories
    pins = h.item_types == ItemType.PIN
    rates = world.item_rates(h.item_ids[pins])
    planted = rates[:, 0] / rates.sum(axis=1)
    saved = names_of(h.actions[pins], dataset.vocabulary.actions) == "save"
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
        group = (planted >= low) & (planted < high)
        assert saved[group].mean() == pytest.approx(planted[group].mean(), abs=0.05)


def test_best_saved_and_best_clicked_items_of_a_topic_are_different_ones(world):
    items = world.item_ids()
    shared = []
    for topic in range(SPEC.num_topics):
        rates = world.item_rates(items[world.topic_of(items) == topic])
        best = [set(np.argsort(-rates[:, a])[: len(rates) // 4]) for a in range(2)]
        shared.append(len(best[0] & best[1]) / len(best[0]))
    assert np.mean(shared) < 0.15


def test_rates_fall_outside_of_a_users_interests(world):
    items = world.item_ids()
    users = np.full(len(items), 7)
    inside = np.isin(world.topic_of(items), world.interests_of(7))
    rates = world.rates(users, items)
    assert rates.shape == (len(items), 2)
    np.testing.assert_allclose(rates[inside], world.item_rates(items)[inside])
    np.testing.assert_allclose(rates[~inside], 0.1 * world.item_rates(items)[~inside])
    assert (rates > 0).all()
    assert (rates.sum(axis=1) < 1).all()


def test_queries_name_the_topic_of_the_engagements_that_follow(dataset, world):
    h, v = dataset.histories, dataset.vocabulary
    surface = names_of(h.surfaces, v.surfaces)
    queries = np.flatnonzero(h.item_types == ItemType.SEARCH_QUERY)
    assert len(queries) > 100
    assert set(surface[queries]) == {"search"}
    assert set(names_of(h.actions[queries], v.actions)) == {"search"}
    followed = 0
    user = np.repeat(h.user_ids, np.diff(h.offsets))
    for at in queries[:-1]:
        soon = user[at] == user[at + 1] and h.timestamps_ms[at + 1] - h.timestamps_ms[at] < 120_000
        if soon and h.item_types[at + 1] == ItemType.PIN:
            topic = int(world.topic_of(h.item_ids[at + 1 : at + 2])[0])
            assert world.topic_name(topic) in dataset.titles[int(h.item_ids[at])]
            followed += 1
    assert followed > len(queries) / 2


def test_query_content_points_at_its_topic(dataset, world):
    rows = dequantize(dataset.items.content, dataset.items.scale)
    is_query = dataset.items.types == ItemType.SEARCH_QUERY
    pins = dataset.items.ids[~is_query]
    for item_id, row in zip(dataset.items.ids[is_query], rows[is_query], strict=True):
        nearest = pins[np.argsort(-(rows[~is_query] @ row))[:5]]
        names = {world.topic_name(int(t)) for t in world.topic_of(nearest)}
        assert any(name in dataset.titles[int(item_id)] for name in names)


def test_popularity_is_skewed_and_nobody_is_shown_an_item_twice(dataset):
    h = dataset.histories
    pins = h.item_types == ItemType.PIN
    counts = np.sort(np.unique(h.item_ids[pins], return_counts=True)[1])[::-1]
    assert counts[:40].sum() > 3 * counts[40:].mean() * 40
    user = np.repeat(h.user_ids, np.diff(h.offsets))[pins]
    assert len(np.unique(np.stack([user, h.item_ids[pins]]), axis=1).T) == pins.sum()


def test_interests_interleave_at_home_and_not_on_related(dataset, world):
    h, v = dataset.histories, dataset.vocabulary
    pins = np.flatnonzero(h.item_types == ItemType.PIN)
    topics, surface = world.topic_of(h.item_ids[pins]), names_of(h.surfaces[pins], v.surfaces)
    near = np.diff(h.timestamps_ms[pins]) < 120_000
    changes = topics[1:] != topics[:-1]
    share = {
        name: changes[near & (surface[1:] == name) & (surface[:-1] == name)].mean() for name in ("home", "related")
    }
    assert share["home"] > share["related"] + 0.1


def test_item_texts_are_the_topics_words_and_a_number(dataset, world):
    for item in world.item_ids()[::37].tolist():
        words = dataset.titles[item].rsplit(" ", 1)
        assert words[0] == world.topic_name(int(world.topic_of(np.array([item]))[0]))
        assert words[1].isdigit()
    assert TOPIC_NAMES[0] == "mossy lantern"
    assert len(set(TOPIC_NAMES)) == len(TOPIC_NAMES)


def test_shards_join_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr("pinrec_core.data.synthetic._EVENTS_A_SHARD", 3_000)
    monkeypatch.setattr("pinrec_core.data.synthetic._ITEMS_A_SHARD", 150)
    SyntheticWorld(SPEC).write(tmp_path / "log")
    assert check_folder(tmp_path / "log") == []
    users = pq.read_table(tmp_path / "log" / "events.parquet")["user_id"].to_numpy()
    assert (np.diff(users) >= 0).all()
    assert pq.read_metadata(tmp_path / "log" / "events.parquet").num_row_groups > 2
    assert pq.read_metadata(tmp_path / "log" / "items.parquet").num_rows == SPEC.items


def test_a_tiny_world_works_and_wrong_sizes_are_refused(tmp_path):
    SyntheticWorld(SyntheticSpec(users=5, items=20, events=60)).write(tmp_path / "tiny")
    assert check_folder(tmp_path / "tiny") == []
    with pytest.raises(InvalidConfig, match="users has value 0"):
        SyntheticSpec(users=0)
    with pytest.raises(InvalidConfig, match="topics has value 9; allowed: 0 to 8"):
        SyntheticSpec(items=8, topics=9)


def test_a_folder_in_use_is_not_overwritten_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    with pytest.raises(InvalidData, match="is not empty"):
        SyntheticWorld(SPEC).write(tmp_path / "taken")

    class Broken(SyntheticWorld):
        def _write_events(self, writer, progress):
            raise RuntimeError("disk is gone")

    with pytest.raises(RuntimeError, match="disk is gone"):
        Broken(SPEC).write(tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
