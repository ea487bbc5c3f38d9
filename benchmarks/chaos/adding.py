"""What a search costs while items arrive: an index of a million items that takes a thousand more a second."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.chaos.table import Row
from pinrec_core.config import RetrieveConfig
from pinrec_core.items.changes import ItemChanges
from pinrec_core.retrieve.build import build_index
from pinrec_core.retrieve.index import open_index
from pinrec_core.retrieve.live_index import LiveIndex

DIM, CLUSTERS = 64, 2_000
CELLS, PROBES = 2_048, 16
QUERIES, K = 12, 100
"""Of one request."""
ADDS_A_SECOND, PIECE = 1_000, 100
ROUNDS, ROUND_S = 5, 6.0
P99_BAR = 2.0


def measure(folder: Path, num_items: int) -> list[Row]:
    """p99 of a request's searches without and with additions, in alternating rounds of one run."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLUSTERS, DIM)).astype(np.float32)
    index = LiveIndex(_main_index(folder / f"index-{num_items}", num_items, centres))
    queries = _vectors(rng, centres, 4_096)
    still: list[float] = []
    adding: list[float] = []
    next_id = num_items
    _search_for(index, queries, 2.0)
    for _ in range(ROUNDS):
        still += _search_for(index, queries, ROUND_S)
        stop = threading.Event()
        adder = threading.Thread(target=_add, args=(index, centres, next_id, stop))
        adder.start()
        adding += _search_for(index, queries, ROUND_S)
        stop.set()
        adder.join()
        next_id += 10 * num_items
    added = index.num_items - num_items
    before, during = (float(np.percentile(np.array(each) * 1000, 99)) for each in (still, adding))
    return [
        Row(
            f"{QUERIES} searches of a request in {num_items:,} items while {ADDS_A_SECOND:,} a second are added",
            f"p99 <= {P99_BAR:.0f}x",
            f"{during / before:.2f}x ({during:.1f} ms against {before:.1f} ms), {added:,} added",
            during <= P99_BAR * before and added >= 0.9 * ROUNDS * ROUND_S * ADDS_A_SECOND,
            {"p99_before_ms": before, "p99_during_ms": during, "added": added},
        )
    ]


def _main_index(folder: Path, num_items: int, centres: NDArray[np.float32]):  # noqa: ANN202  MainIndex
    if not (folder / "index.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        vectors = _vectors(np.random.default_rng(1), centres, num_items)
        config = RetrieveConfig(kind="ivf_hnsw", nlist=min(CELLS, num_items // 64), nprobe=PROBES)
        build_index(np.arange(num_items), vectors, config, folder)
    return open_index(folder, num_threads=1)


def _vectors(rng: np.random.Generator, centres: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Unit vectors around the centres: [count, D]."""
    vectors = centres[rng.integers(0, len(centres), count)]
    vectors += 0.7 * rng.standard_normal(vectors.shape, dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _search_for(index: LiveIndex, queries: NDArray[np.float32], seconds: float) -> list[float]:
    """Seconds of each request's searches, one request after the other, at half of what one thread can do."""
    taken, end, place = [], time.monotonic() + seconds, 0
    while (start := time.monotonic()) < end:
        index.search(queries[place : place + QUERIES], [K] * QUERIES)
        taken.append(time.monotonic() - start)
        time.sleep(taken[-1])
        place = (place + QUERIES) % (len(queries) - QUERIES)
    return taken


def _add(index: LiveIndex, centres: NDArray[np.float32], first_id: int, stop: threading.Event) -> None:
    """Add pieces at an even pace until `stop`."""
    rng, start, added = np.random.default_rng(first_id), time.monotonic(), 0
    while not stop.is_set():
        vectors = _vectors(rng, centres, PIECE)
        zeros = np.zeros((PIECE, 1), np.int8), np.zeros(PIECE, np.float32)
        index.apply(ItemChanges(first_id + added + np.arange(PIECE), np.zeros(PIECE, bool), vectors, *zeros))
        added += PIECE
        stop.wait(max(0.0, start + added / ADDS_A_SECOND - time.monotonic()))
