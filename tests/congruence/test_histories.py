"""Training and serving see the same history of a user: two readers of one event log, held to each other."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import open_dataset
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.release import Release
from pinrec_core.signals.batch_view import BatchView, compile_batch_view
from pinrec_core.signals.fetch import SignalFetcher
from pinrec_core.signals.realtime import MemoryHistoryStore

T0 = 1_700_000_000_000
NUM_EVENTS, NUM_ITEMS = 600, 40
CONFIG = config_from_dict({"data": {"content_dim": 8}, "model": {"max_history": NUM_EVENTS}})


def event_log():
    """Saves, clicks and searches of 30 users, many at equal times, some with a time that only gives the order."""
    rng = np.random.default_rng(0)
    is_query = rng.random(NUM_EVENTS) < 0.2
    masked = rng.random(NUM_EVENTS) < 0.3
    words = np.array(["red bicycle", "Blue  SKY", "green kitchen"])[rng.integers(0, 3, NUM_EVENTS)]
    times = np.where(masked, rng.integers(0, 50, NUM_EVENTS), T0 + 1_000 * rng.integers(0, 50, NUM_EVENTS))
    return pa.table(
        {
            "user_id": rng.integers(-15, 15, NUM_EVENTS),
            "item_id": np.where(is_query, 0, rng.integers(0, NUM_ITEMS, NUM_EVENTS)),
            "item_type": np.where(is_query, "search_query", "pin"),
            "action": np.where(is_query, "search", rng.choice(["save", "click"], NUM_EVENTS)),
            "surface": np.where(masked, "unknown", np.where(is_query, "search", "home")),
            "timestamp_ms": times,
            "text": [text if query else None for text, query in zip(words, is_query, strict=True)],
            "event_id": pa.array(np.arange(1, NUM_EVENTS + 1), pa.uint64()),
        }
    )


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
    facts = compile_batch_view(folder, tmp_path / "view")
    fetcher = SignalFetcher(release, BatchView.open(tmp_path / "view"), MemoryHistoryStore())

    histories = dataset.histories
    assert (facts["num_users"], facts["watermark_ms"]) == (histories.num_users, dataset.watermark_ms)
    requests = [FetchSignalsInput(int(user), 1, "", T0, 1, 1_000) for user in histories.user_ids]
    for row, signals in enumerate(fetcher.run(requests)):
        span = histories.slice_of(row)
        for name in ("item_ids", "item_types", "actions", "surfaces", "timestamps_ms"):
            trained, served = getattr(histories, name)[span], getattr(signals, name)
            assert np.array_equal(trained, served), name
            assert trained.dtype == served.dtype, name
        items = dataset.items.rows(histories.item_ids[span])
        assert items.min() >= 0
        assert np.array_equal(signals.content, dataset.items.content[items])
        assert np.array_equal(signals.content_scale, dataset.items.scale[items])
