"""How long the service works for one merged history, and for 64 users of one call: read, merge, join, pack."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.chaos.table import Row
from pinrec_core.messages import FetchSignalsInput
from pinrec_core.schema import ItemType
from pinrec_core.signals.batch_view import open_batch_view
from pinrec_core.signals.events import Event
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.realtime import open_store
from services.signals.wire import pack_history

BATCH_EVENTS, REALTIME_EVENTS = 240, 16
CONTENT_DIM = 64
USERS_A_CALL = 64
CALLS, ROUNDS = 400, 5
"""A round asks for each user once; the first ones of a process are slower (its caches are cold), so several count."""
ONE_BAR_MS, MANY_BAR_MS = 0.3, 6.0
CONFIG = {
    "model": {"num_layers": 1, "hidden_dim": 32, "num_heads": 2, "hash_rows": 100, "max_history": 256},
    "data": {"content_dim": CONTENT_DIM},
}


def measure(folder: Path) -> list[Row]:
    """Both figures over a real release, batch view and RocksDB store, in this process."""
    fetcher, user_ids = prepared(folder)
    one = seconds_of(fetcher, [[user] for user in user_ids[:CALLS].tolist()] * ROUNDS)
    many = seconds_of(fetcher, [part.tolist() for part in np.array_split(np.resize(user_ids, 100 * USERS_A_CALL), 100)])
    return [
        _row(
            f"one merged history ({BATCH_EVENTS} batch + {REALTIME_EVENTS} realtime events, content)", one, ONE_BAR_MS
        ),
        _row(f"{USERS_A_CALL} such histories in one call", many, MANY_BAR_MS),
    ]


def prepared(folder: Path) -> tuple[SignalFetcher, NDArray[np.int64]]:
    """A fetcher, and users who have exactly the wanted numbers of events in both views."""
    from pinrec_core.batch_job.definition import ViewDefinition
    from pinrec_core.batch_job.job import JobOptions, build_batch_view
    from pinrec_core.config import config_from_dict
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
    from pinrec_core.model.pinrec import PinRec
    from pinrec_core.release import open_release
    from pinrec_core.train.export import export

    spec = SyntheticSpec(users=1_500, items=20_000, events=600_000, content_dim=CONTENT_DIM)
    SyntheticWorld(spec).write(folder / "data")
    config = config_from_dict(CONFIG)
    dataset = open_dataset(folder / "data", config)
    export(PinRec(config, dataset.vocabulary, CONTENT_DIM), dataset, folder / "releases")
    build_batch_view(folder / "data", folder / "view", JobOptions(ViewDefinition(max_events=BATCH_EVENTS)))
    release = open_release(folder / "releases", 1)
    counts = np.diff(dataset.histories.offsets)
    user_ids = dataset.histories.user_ids[counts >= BATCH_EVENTS]
    pins = release.items.ids[release.items.types == ItemType.PIN]
    store = open_store(str(folder / "signals"))
    for user in user_ids.tolist():
        store.append(
            [
                Event(
                    user, int(pins[(user + i) % len(pins)]), ItemType.PIN, "save", "home", dataset.watermark_ms + 1 + i
                )
                for i in range(REALTIME_EVENTS)
            ]
        )
    return SignalFetcher(release, FixedView(open_batch_view(folder / "view")), store), user_ids


def seconds_of(fetcher: SignalFetcher, calls: Sequence[Sequence[int]]) -> list[float]:
    """Seconds of each call, packed for the wire as the service does; every user is first read once."""
    for user_ids in calls[:CALLS]:
        _answer(fetcher, user_ids)
    seconds = []
    for user_ids in calls:
        start = time.perf_counter()
        lengths = _answer(fetcher, user_ids)
        seconds.append(time.perf_counter() - start)
        assert lengths == {BATCH_EVENTS + REALTIME_EVENTS}
    return seconds


def _answer(fetcher: SignalFetcher, user_ids: Sequence[int]) -> set[int]:
    """What the service does for one call; returns the lengths of the histories."""
    request_time_ms, release = int(time.time() * 1000), fetcher.release.number
    signals = fetcher.run([FetchSignalsInput(user, 1, "", request_time_ms, release, 1_000) for user in user_ids])
    for one in signals:
        pack_history(one)
    return {one.sequence_length for one in signals}


def _row(what: str, seconds: Sequence[float], bar_ms: float) -> Row:
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99]).tolist()
    return Row(
        what,
        f"p50 <= {bar_ms} ms" if bar_ms < 1 else f"p50 <= {bar_ms:.0f} ms",
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms over {len(seconds)} calls",
        p50 <= bar_ms,
        {"p50_ms": p50, "p99_ms": p99},
    )
