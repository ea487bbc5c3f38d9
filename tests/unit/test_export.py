"""Export: a release from a trained model; from a newer log, in the codes and content space that the model knows."""

import stat
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pinrec_core.codec import dequantize
from pinrec_core.config import config_from_dict
from pinrec_core.data.carry import carry_items
from pinrec_core.data.dataset import open_dataset
from pinrec_core.errors import InvalidData
from pinrec_core.items.log import Item, ItemLog, read_items
from pinrec_core.items.vectors import ItemVectors
from pinrec_core.model.id_embedding import IdEmbedder
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import open_release
from pinrec_core.retrieve.index import open_index
from pinrec_core.retrieve.live_index import LiveIndex
from pinrec_core.train.export import export, fingerprint, index_vectors

CONFIG = config_from_dict(
    {
        "data": {"content_dim": 8},
        "model": {"hidden_dim": 16, "num_heads": 2, "embedding_dim": 8, "id_dim": 4, "hash_rows": 50, "hash_dim": 4},
        "retrieve": {"popular_per_list": 5},
    }
)
ONE_LAYER = {"id_layers": 1, "embedder_layers": 1, "head_layers": 1}
THINGS = ["oak", "pine", "birch", "maple", "tulip", "rose", "daisy", "lily"]


def write_log(folder, num_items, surfaces=("home",)):
    folder.mkdir()
    n = 60
    events = {
        "user_id": pa.array(np.arange(n) % 6),
        "item_id": pa.array(np.arange(n) % num_items),
        "item_type": ["pin"] * n,
        "action": ["save" if i % 3 else "click" for i in range(n)],
        "surface": [surfaces[i % len(surfaces)] for i in range(n)],
        "timestamp_ms": pa.array(1_700_000_000_000 + np.arange(n) * 1_000),
    }
    titles = [f"{THINGS[i % len(THINGS)]} tree number {'abcdefghijkl'[i]}" for i in range(num_items)]
    items = {"item_id": pa.array(np.arange(num_items)), "item_type": ["pin"] * num_items, "text": titles}
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    torch.manual_seed(0)  # some weights of a network so small give all items one vector
    root = tmp_path_factory.mktemp("export")
    dataset = open_dataset(write_log(root / "first", 8), CONFIG)
    model = PinRec(CONFIG, dataset.vocabulary, dataset.items.content.shape[1])
    return root, dataset, model, open_release(root / "releases", export(model, dataset, root / "releases", {"x": 1}))


def test_a_release_holds_everything(first):
    _, dataset, model, release = first
    assert release.manifest["metrics"] == {"x": 1}
    assert release.manifest["watermark_ms"] == dataset.watermark_ms
    assert release.manifest["item_embedder"] == fingerprint(model)
    assert release.vocabulary == dataset.vocabulary
    assert release.popular.shape == (2, 2, 5)
    assert open_index(release.path / "index").num_items == 8
    assert {p.name for p in release.path.iterdir()} == {
        "config.json", "decoder.safetensors", "display", "id_embedding.pt", "id_tables", "index", "items",
        "manifest.json", "popular", "text_encoder", "vocabulary.json",
    }  # fmt: skip


@pytest.mark.parametrize("changed", [{"block": "hstu"}, {"skips": True}, ONE_LAYER])
def test_another_network_is_carried(first, tmp_path, changed):
    _, dataset, _, _ = first
    config = replace(CONFIG, model=replace(CONFIG.model, **changed))
    model = PinRec(config, dataset.vocabulary, dataset.items.content.shape[1])
    release = open_release(tmp_path, export(model, dataset, tmp_path, {"x": 1}))
    opened = PinRec.open(release)
    assert opened.decoder.is_hstu == (changed.get("block") == "hstu")
    served, ids = opened.state_dict(), dataset.items.ids
    assert set(served) == {name for name in model.state_dict() if not name.startswith("id_embedding.")}
    for name, weight in served.items():
        assert torch.equal(model.state_dict()[name], weight)
    with torch.inference_mode():
        id_emb = model.id_embedding(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(IdEmbedder.open(release).embed(ids), id_emb, atol=0.01)


def test_int8_rows_are_half_the_table_and_make_the_index(first, tmp_path):
    _, dataset, model, release = first
    smaller = open_release(tmp_path, export(model, dataset, tmp_path, id_codes="int8"))
    ids = dataset.items.ids[dataset.served_pins]
    half, byte = (IdEmbedder.open(one).embed(ids) for one in (release, smaller))
    assert (half != byte).any()
    np.testing.assert_allclose(half, byte, atol=0.05)
    [shard] = (smaller.path / "id_tables").glob("shard-*")
    assert shard.stat().st_size == model.id_embedding.table.weight.shape[0] * (CONFIG.model.hash_dim + 2)
    vectors = index_vectors(model, IdEmbedder.open(smaller), dataset.items, dataset.served_pins)
    [(found, _)] = open_index(smaller.path / "index").search(vectors[3:4], [1])
    assert found[0] == ids[3]


def test_another_user_may_read_it(first):
    release = first[3]
    assert all(path.stat().st_mode & stat.S_IROTH for path in [release.path, *release.path.rglob("*")])


def test_a_newer_log_refreshes_the_corpus_without_training(first):
    root, dataset, model, release = first
    newer = open_dataset(write_log(root / "newer", 11, ("home", "search")), CONFIG, fitted=dataset.fitted)
    refreshed = open_release(root / "releases", export(model, newer, root / "releases"))
    assert refreshed.vocabulary == release.vocabulary  # the new surface is the unknown one
    assert open_index(refreshed.path / "index").num_items == 11
    for old, new in ((release.items.content, refreshed.items.content), (release.items.scale, refreshed.items.scale)):
        np.testing.assert_array_equal(old, new[:8])
    assert np.abs(dequantize(refreshed.items.content[8:], refreshed.items.scale[8:])).sum() > 0


def test_embeddings_of_another_width_are_refused(first, tmp_path):
    _, dataset, _, _ = first
    folder = write_log(tmp_path / "wide", 8)
    items = pq.read_table(folder / "items.parquet")
    embedding = pa.array([[1.0, 2.0]] * 8, pa.list_(pa.float32()))
    pq.write_table(items.append_column("embedding", embedding), folder / "items.parquet")
    with pytest.raises(InvalidData, match="embedding has width 2; allowed: the model's 8"):
        open_dataset(folder, CONFIG, fitted=dataset.fitted)


def test_the_fingerprint_follows_the_item_embedder_only(first):
    _, dataset, model, _ = first
    twin = PinRec(CONFIG, dataset.vocabulary, dataset.items.content.shape[1])
    twin.load_state_dict(model.state_dict())
    twin.time_token.weight.data += 1
    assert fingerprint(twin) == fingerprint(model)
    assert twin.id_embedding is not None
    twin.id_embedding.table.weight.data[0] += 1
    assert fingerprint(twin) != fingerprint(model)


def test_items_of_the_log_are_carried(first):
    """Item 20 is new and says what item 3 says, item 5 says something else now, item 2 is gone."""
    root, dataset, model, before = first
    log = ItemLog(root / "items", now_us=lambda: 1_000)
    same_text = "maple tree number d"
    log.put([Item(20, same_text, "Twenty"), Item(5, "brass lantern"), Item(2, deleted=True), Item(77, deleted=True)])
    carried = carry_items(dataset, read_items(root / "items"))
    log.close()
    release = open_release(root / "releases", export(model, carried, root / "releases"))
    assert (release.items_sequence, before.items_sequence) == (1_003, 0)
    assert release.items.ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 20]
    np.testing.assert_array_equal(release.items.content[8], before.items.content[3])
    np.testing.assert_array_equal(release.items.content[2], before.items.content[2])  # histories still need it
    assert (release.items.content[5] != before.items.content[5]).any()
    assert 2 in before.popular
    assert not {2, 77} & set(release.popular.ravel().tolist())
    assert carried.titles[20] == "Twenty"
    [(found, _)] = open_index(release.path / "index").search(np.ones((1, 8), np.float32), [100])
    assert sorted(found.tolist()) == [0, 1, 3, 4, 5, 6, 7, 20]


def test_a_carried_item_has_the_vector_that_was_told_before(first):
    """What the item service makes of an item for release 1, and what the next release's index holds of it."""
    root, dataset, model, before = first
    item = Item(20, "pine tree, quite new")
    [changes] = ItemVectors.open(before).run([[item, Item(2, deleted=True)]])
    assert changes.deleted.tolist() == [False, True]
    assert not changes.vectors[1].any()
    release = open_release(root / "releases", export(model, carry_items(dataset, [item]), root / "releases"))
    queries = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    live = LiveIndex(open_index(before.path / "index"))
    live.apply(changes)
    for (ids, scores), (live_ids, live_scores) in zip(
        open_index(release.path / "index").search(queries, [9] * 4), live.search(queries, [9] * 4), strict=True
    ):
        assert [one for one in ids.tolist() if one != 2] == live_ids.tolist()
        np.testing.assert_allclose(scores[ids != 2], live_scores, atol=1e-5)
