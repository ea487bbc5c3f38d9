"""Training and serving see the same history of a user: two ways from one event log to the model, held to each other."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.batch_job.job import build_batch_view
from pinrec_core.config import config_from_dict
from pinrec_core.data.batches import BatchStream, event_rows
from pinrec_core.data.dataset import open_dataset
from pinrec_core.eval.evaluate import held_out
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.release import Release
from pinrec_core.schema import ItemType
from pinrec_core.signals.batch_view import open_batch_view
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.realtime import MemoryHistoryStore

T0 = 1_700_000_000_000
NUM_EVENTS, NUM_ITEMS, NUM_UNLISTED = 600, 40, 5
NUM_EQUAL, NUM_REPEATED = 60, 40
CONFIG = config_from_dict({"data": {"content_dim": 8}, "model": {"max_history": NUM_EVENTS + NUM_EQUAL}})


def event_log():
    """Saves, clicks and searches of 30 users, many at equal times, some with a time that only gives the order.

    A third has an event id. Some rows without come a second time and are two events; some rows with one come a second
    time and are one. Some pins are in no catalog.
    """
    rng = np.random.default_rng(0)
    is_query = rng.random(NUM_EVENTS) < 0.2
    masked = rng.random(NUM_EVENTS) < 0.3
    words = np.array(["red bicycle", "Blue  SKY", "green kitchen"])[rng.integers(0, 3, NUM_EVENTS)]
    times = np.where(masked, rng.integers(0, 50, NUM_EVENTS), T0 + 1_000 * rng.integers(0, 50, NUM_EVENTS))
    event_ids = np.where(np.arange(NUM_EVENTS) % 3 == 0, np.arange(1, NUM_EVENTS + 1), 0)
    log = pa.table(
        {
            "user_id": rng.integers(-15, 15, NUM_EVENTS),
            "item_id": np.where(is_query, 0, rng.integers(0, NUM_ITEMS + NUM_UNLISTED, NUM_EVENTS)),
            "item_type": np.where(is_query, "search_query", "pin"),
            "action": np.where(is_query, "search", rng.choice(["save", "click"], NUM_EVENTS)),
            "surface": np.where(masked, "unknown", np.where(is_query, "search", "home")),
            "timestamp_ms": times,
            "text": [text if query else None for text, query in zip(words, is_query, strict=True)],
            "event_id": pa.array(event_ids, pa.uint64()),
        }
    )
    equal = rng.choice(np.flatnonzero(event_ids == 0), NUM_EQUAL, replace=False)
    repeated = rng.choice(np.flatnonzero(event_ids > 0), NUM_REPEATED, replace=False)
    return pa.concat_tables([log.slice(0, 300), log.take(equal), log.take(repeated), log.slice(300)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("log")
    pq.write_table(event_log(), path / "events.parquet")
    texts = [f"thing number {item}" for item in range(NUM_ITEMS)]
    items = {"item_id": range(NUM_ITEMS), "item_type": ["pin"] * NUM_ITEMS, "text": texts}
    pq.write_table(pa.table({name: list(values) for name, values in items.items()}), path / "items.parquet")
    return path


def test_training_and_serving_see_the_same_history(folder, tmp_path):
    dataset = open_dataset(folder, CONFIG)
    dataset.items.save(tmp_path / "items")
    dataset.text_encoder.save(tmp_path / "text_encoder")
    release = Release(tmp_path, 1, {}, CONFIG, dataset.vocabulary)
    report = build_batch_view(folder, tmp_path / "view")
    fetcher = SignalFetcher(release, FixedView(open_batch_view(tmp_path / "view")), MemoryHistoryStore())

    histories = dataset.histories
    manifest = report.manifest
    assert (manifest.num_users, manifest.watermark_ms) == (histories.num_users, dataset.watermark_ms)
    assert manifest.num_events == histories.num_events == NUM_EVENTS + NUM_EQUAL
    assert report.num_rows == NUM_EVENTS + NUM_EQUAL + NUM_REPEATED
    assert {problem.kind for problem in dataset.findings} == {"repair", "notice"}
    unlisted = (histories.item_types == ItemType.PIN) & (histories.item_ids >= NUM_ITEMS)
    assert unlisted.sum() > 20
    requests = [FetchSignalsInput(int(user), 1, "", T0, 1, 1_000) for user in histories.user_ids]
    for row, signals in enumerate(fetcher.run(requests)):
        span = histories.slice_of(row)
        for name in ("item_ids", "item_types", "actions", "surfaces", "timestamps_ms"):
            trained, served = getattr(histories, name)[span], getattr(signals, name)
            assert np.array_equal(trained, served), name
            assert trained.dtype == served.dtype, name
        trained = event_rows(histories, dataset.items, span.start, span.stop)
        assert np.array_equal(signals.content, trained.content)
        assert np.array_equal(signals.content_scale, trained.content_scale)
        assert np.array_equal(signals.content_scale == 0, unlisted[span])


def test_what_no_catalog_lists_is_never_learned_or_listed(folder):
    dataset = open_dataset(folder, CONFIG)
    is_listed = (dataset.histories.item_types == ItemType.PIN) & (dataset.histories.item_ids < NUM_ITEMS)
    assert np.array_equal(dataset.target_outcomes >= 0, is_listed)
    assert dataset.popular(100).max() < NUM_ITEMS
    stream = BatchStream(dataset, dataset.split(CONFIG).train, CONFIG)
    assert stream.target_ids().max() < NUM_ITEMS
    batch = stream.batch(0)
    assert np.isin(np.arange(NUM_ITEMS, NUM_ITEMS + NUM_UNLISTED), batch.inputs.item_ids.numpy()).any()
    assert batch.candidate_ids.max() < NUM_ITEMS
    for user in held_out(dataset, np.arange(dataset.histories.num_users), num_targets=8):
        assert is_listed[user.targets].all()
