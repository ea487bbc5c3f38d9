import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.codec import dequantize
from pinrec_core.config import Config, DataConfig, GenerateConfig, ModelConfig
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.histories import Histories, split_users
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.text_encoder import query_item_id

T0 = 1_700_000_000_000
CATS = query_item_id("cats")

EVENTS = [
    # user, item, type, action, surface, time, text
    (7, 30, "pin", "save", "home", T0 + 3, None),
    (7, 10, "pin", "click", "home", T0 + 1, None),
    (7, CATS, "search_query", "search", "search", T0 + 2, "Cats!"),
    (2, 20, "pin", "click", "related", T0 + 9, None),
    (2, 10, "pin", "click", "unknown", 5, None),
    (2, 30, "pin", "hide", "home", T0 + 8, None),
]


def write_folder(folder, events=EVENTS, items=None, facts=None):
    names = ["user_id", "item_id", "item_type", "action", "surface", "timestamp_ms", "text"]
    pq.write_table(pa.table(dict(zip(names, zip(*events, strict=True), strict=True))), folder / "events.parquet")
    if items is None:
        items = {"item_id": [30, 10, 20], "item_type": ["pin"] * 3, "text": ["grey cats", "two dogs", "white cats"]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    if facts is not None:
        facts.save(folder)
    return folder


def test_histories_are_ordered_by_user_and_time(tmp_path):
    dataset = open_dataset(write_folder(tmp_path), Config())
    h, v = dataset.histories, dataset.vocabulary
    assert h.user_ids.tolist() == [2, 7]
    assert h.offsets.tolist() == [0, 3, 6]
    assert h.item_ids.tolist() == [10, 30, 20, 10, CATS, 30]
    assert h.item_types.tolist() == [0, 0, 0, 0, 1, 0]
    assert h.timestamps_ms.tolist() == [5, T0 + 8, T0 + 9, T0 + 1, T0 + 2, T0 + 3]
    assert [v.actions[code - 1] for code in h.actions] == ["click", "hide", "click", "click", "search", "save"]
    assert h.surfaces[0] == 0
    assert [v.surfaces[code - 1] for code in h.surfaces[1:]] == ["home", "related", "home", "search", "home"]
    assert h.slice_of(1) == slice(3, 6)
    assert (h.num_users, h.num_events) == (2, 6)
    assert (h.row_of(7), h.row_of(3), h.row_of(99)) == (1, -1, -1)
    assert dataset.watermark_ms == T0 + 9


def test_vocabulary_takes_outcomes_from_config_then_dataset_json_then_rarity(tmp_path):
    write_folder(tmp_path)
    by_rarity = open_dataset(tmp_path, Config()).vocabulary
    assert by_rarity.outcomes == ("hide", "save", "click")
    assert by_rarity.actions == ("hide", "save", "click", "search")
    assert by_rarity.surfaces == ("home", "related", "search")
    assert by_rarity.search_surfaces == ("search",)
    DatasetFacts(name="tiny", outcomes=("save", "click"), search_surfaces=("home",)).save(tmp_path)
    declared = open_dataset(tmp_path, Config())
    assert declared.name == "tiny"
    assert declared.vocabulary.outcomes == ("save", "click")
    assert declared.vocabulary.actions == ("save", "click", "hide", "search")
    assert declared.vocabulary.search_surfaces == ("home",)
    configured = open_dataset(tmp_path, Config(data=DataConfig(outcomes=("click",)))).vocabulary
    assert configured.outcomes == ("click",)
    assert configured.actions == ("click", "hide", "save", "search")


def test_uc_has_one_outcome_and_an_outcome_nobody_logged_is_refused(tmp_path):
    write_folder(tmp_path)
    config = Config(model=ModelConfig(variant="uc"), generate=GenerateConfig(offsets_per_step=1))
    assert open_dataset(tmp_path, config).vocabulary.outcomes == ("any",)
    with pytest.raises(InvalidData, match=r"'purchase', which no pin of .* has; actions: .*'hide', 'save', 'click'"):
        open_dataset(tmp_path, Config(data=DataConfig(outcomes=("purchase",))))


def test_items_hold_pins_and_queries_with_text_content(tmp_path):
    dataset = open_dataset(write_folder(tmp_path), Config(data=DataConfig(content_dim=3)))
    ids, types = dataset.items.ids.tolist(), dataset.items.types.tolist()
    assert ids == sorted([10, 20, 30, CATS])
    assert dict(zip(ids, types, strict=True)) == {10: 0, 20: 0, 30: 0, CATS: 1}
    assert dataset.items.content.shape == (4, 3)
    rows = dequantize(dataset.items.content, dataset.items.scale)
    query, dogs, white = (rows[dataset.items.rows(np.array([item]))[0]] for item in (CATS, 10, 20))
    assert query @ white > query @ dogs + 0.3
    assert dataset.titles == {10: "two dogs", 20: "white cats", 30: "grey cats", CATS: "Cats!"}


def test_embeddings_are_normalized_and_queries_live_in_their_space(tmp_path):
    items = {
        "item_id": [10, 20, 30],
        "item_type": ["pin"] * 3,
        "text": ["two dogs", "white cats", "grey cats"],
        "embedding": [[0.0, 2.0], [3.0, 0.0], [5.0, 0.0]],
        "title": ["Dogs", None, "Greys"],
    }
    dataset = open_dataset(write_folder(tmp_path, items=items), Config())
    rows = dequantize(dataset.items.content, dataset.items.scale)
    at = dataset.items.rows(np.array([10, 20, 30, CATS]))
    np.testing.assert_allclose(rows[at][:3], [[0, 1], [1, 0], [1, 0]], atol=0.005)
    assert rows[at][3] @ [1, 0] > 0.9
    assert dataset.text_encoder.dim == 2
    assert dataset.titles[10] == "Dogs"
    assert dataset.titles[20] == "white cats"


def test_embeddings_without_text_leave_queries_to_the_plain_encoder(tmp_path):
    items = {"item_id": [10, 20, 30], "item_type": ["pin"] * 3, "embedding": [[0.0, 2.0, 0, 0]] * 3}
    dataset = open_dataset(write_folder(tmp_path, items=items), Config())
    assert dataset.items.content.shape == (4, 4)
    row = dequantize(dataset.items.content, dataset.items.scale)[dataset.items.rows(np.array([CATS]))[0]]
    assert np.linalg.norm(row) == pytest.approx(1, abs=0.01)


def test_popular_counts_events_of_pins_by_surface_and_outcome(tmp_path):
    dataset = open_dataset(write_folder(tmp_path, facts=DatasetFacts("x", outcomes=("save", "click"))), Config())
    popular = dataset.popular(3)
    assert popular.dtype == np.int64
    assert popular.shape == (4, 2, 3)
    assert popular[0].tolist() == [[30, -1, -1], [10, 20, -1]]
    home, related = dataset.vocabulary.surface_code("home"), dataset.vocabulary.surface_code("related")
    assert popular[home].tolist() == [[30, -1, -1], [10, -1, -1]]
    assert popular[related].tolist() == [[-1, -1, -1], [20, -1, -1]]


def test_split_leaves_out_users_with_too_few_targets(tmp_path):
    dataset = open_dataset(write_folder(tmp_path, facts=DatasetFacts("x", outcomes=("click",))), Config())
    assert dataset.histories.count_by_user(dataset.target_outcomes >= 0).tolist() == [2, 1]
    split = dataset.split(Config())
    assert np.concatenate([split.train, split.validation, split.test]).tolist() == [0]


def test_split_users_is_stable_disjoint_and_meets_its_shares():
    config = DataConfig(test_share=0.2, validation_share=0.1)
    users = np.arange(-2_000, 8_000, dtype=np.int64)
    split = split_users(users, config)
    everyone = np.concatenate([split.train, split.validation, split.test])
    assert np.array_equal(np.sort(everyone), np.arange(10_000))
    assert len(split.test) == pytest.approx(2_000, abs=150)
    assert len(split.validation) == pytest.approx(1_000, abs=110)
    some = users[::7]
    alone = split_users(some, config)
    assert set(some[alone.test]) == set(users[split.test]) & set(some)
    other = split_users(users, DataConfig(test_share=0.2, validation_share=0.1, split_seed=1))
    assert set(other.test) != set(split.test)


def test_count_by_user_of_users_without_events():
    empty = np.zeros(0, dtype=np.int64)
    histories = Histories(
        np.array([1, 2]), np.array([0, 0, 0]), empty, empty.astype(np.uint8), empty.astype(np.int32),
        empty.astype(np.int32), empty,
    )  # fmt: skip
    assert histories.count_by_user(np.zeros(0, dtype=bool)).tolist() == [0, 0]
