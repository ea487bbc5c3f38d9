"""The item index: open and search (paper, section 4.4.4). Faiss only; torch must never be imported here.

An index folder, which `build.py` makes, holds `index.faiss`, `ids.npy` (int64 [N]: the item id of each Faiss row) and
`index.json` (its facts); with 4-bit codes also all items as INT8 rows (`int8_rows.py`).
Similarity is the inner product throughout. Faiss aborts the process on errors inside its parallel regions, so whatever
reaches it has been checked: queries here, files when they are opened.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidConfig, InvalidRelease, InvalidRequest
from pinrec_core.retrieve.int8_rows import Int8Rows

FORMAT = 1
_SMALLEST_BUCKET = 16
_EXHAUSTIVE_CHUNK = 64
_TAKEN_A_K, _TAKEN_MORE = 2, 32
"""From 4-bit codes 2 k + 32 items are ranked again: more raise recall@16 and recall@100 by less than 0.002 each
(100,000 items of the trained synthetic world).
"""

Hits = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Item ids int64 [<= k] and their inner products float32 [<= k], descending."""


class Index(ABC):
    """Nearest items by inner product. Safe to search from several threads."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """D of the queries."""

    @property
    @abstractmethod
    def num_items(self) -> int:
        """N: size of the corpus."""

    def search(self, queries: NDArray[np.floating], ks: Sequence[int] | NDArray[np.integer]) -> list[Hits]:
        """Nearest items of each query: queries float [n, D], ks [n] >= 1 -> n times (ids, scores).

        Each result has exactly min(k, N) distinct items, by descending score. Raises InvalidRequest if the queries have
        another width, hold NaN or infinity, or a k is below 1.
        """
        queries, ks = self._checked(queries, np.asarray(ks))
        results: list[Hits] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        if not self.num_items:
            return results
        buckets = np.array([max(_SMALLEST_BUCKET, 1 << int(k - 1).bit_length()) for k in ks], dtype=np.int64)
        for bucket in np.unique(buckets):  # one k a Faiss call: a bucket wastes less than the largest k would
            members = np.flatnonzero(buckets == bucket)
            scores, item_ids = self.nearest(queries[members], min(int(bucket), self.num_items))
            for place, (member, k) in enumerate(zip(members.tolist(), ks[members].tolist(), strict=True)):
                results[member] = item_ids[place, :k], scores[place, :k]
        return results

    @abstractmethod
    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The plain step of `search`: queries [n, D], checked -> scores and item ids [n, k], none missing; k <= N."""

    def _checked(
        self, queries: NDArray[np.floating], ks: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.integer]]:
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InvalidRequest("embeddings", queries.shape, f"shape [n, {self.dim}]")
        if ks.shape != queries.shape[:1] or (ks < 1).any():
            raise InvalidRequest("k", ks.tolist(), f"{len(queries)} numbers of at least 1")
        ks = np.minimum(ks, self.num_items)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity, which the next line refuses
            queries32 = np.ascontiguousarray(queries, dtype=np.float32)
        if not np.isfinite(queries32).all():
            raise InvalidRequest("embeddings", "NaN or infinity", "finite numbers")
        return queries32, ks


class MainIndex(Index):
    """A Faiss index of a whole corpus, never added to: what serves is memory-mapped. Items can be hidden from it."""

    def __init__(self, index: Any, ids: NDArray[np.int64], num_threads: int = 0) -> None:
        self.faiss = index
        self._ids = np.asarray(ids)
        self._num_threads = num_threads
        self._order = None if (self._ids[1:] > self._ids[:-1]).all() else np.argsort(self._ids, kind="stable")
        self._shown = np.full(-(-len(ids) // 8), 255, np.uint8)  # a bit a row
        self._selector = faiss.IDSelectorBitmap(self._shown)
        self._num_hidden = 0

    @property
    def dim(self) -> int:
        """D of the queries."""
        return int(self.faiss.d)

    @property
    def num_items(self) -> int:
        """N: size of the corpus without what is hidden."""
        return len(self._ids) - self._num_hidden

    def hide(self, item_ids: NDArray[np.int64]) -> None:
        """No search finds these again; ids that the corpus lacks are fine. Not while another thread searches."""
        at = np.minimum(np.searchsorted(self._ids, item_ids, sorter=self._order), len(self._ids) - 1)
        rows = at if self._order is None else self._order[at]
        rows = np.unique(rows[self._ids[rows] == item_ids])
        bytes_, bits = rows >> 3, np.left_shift(1, rows & 7).astype(np.uint8)
        self._num_hidden += int(np.count_nonzero(self._shown[bytes_] & bits))
        np.bitwise_and.at(self._shown, bytes_, ~bits)

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """See `Index`."""
        if self._num_threads:
            faiss.omp_set_num_threads(self._num_threads)  # OpenMP keeps it per calling thread
        # A selector is asked for every row that is scanned, so it comes with the first hidden item.
        scores, rows = self._nearest_rows(queries, k, self._selector if self._num_hidden else None)
        return scores, self._ids[rows]

    @abstractmethod
    def _nearest_rows(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """[n, D] -> scores and rows of the Faiss index [n, k]; a `selector` leaves at least k rows."""


class FlatIndex(MainIndex):
    """Exact search over every item: for small corpora, and the oracle of the other kind."""

    def _nearest_rows(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = self.faiss.search(queries, k, params=faiss.SearchParameters(sel=selector))
        return scores, rows


class IvfHnswIndex(MainIndex):
    """Cells around k-means centroids; `nprobe` of them are scanned, more for a large k.

    ef_search: 0 = the cells of a query are found by products with all centroids, else by an HNSW graph over them. The
    build takes what is cheaper: the graph for few of many cells.
    """

    def __init__(self, index: Any, ids: NDArray[np.int64], nprobe: int, ef_search: int, num_threads: int = 0) -> None:
        super().__init__(index, ids, num_threads)
        self._nprobe = nprobe
        self._ef_search = ef_search
        self.centroids = faiss.downcast_index(index.quantizer).reconstruct_n(0, index.nlist)  # float32 [nlist, D]

    def num_probes(self, k: int) -> int:
        """Cells to scan for k items: those that hold 2 k on average, and at least `nprobe`."""
        return int(min(max(self._nprobe, -(-2 * k * self.faiss.nlist // self.num_items)), self.faiss.nlist))

    def search_near(
        self, index: Any, queries: NDArray[np.float32], k: int, selector: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search the nearest cells of an IVF index that has this one's: scores and rows [n, k], row -1 where they hold
        fewer.
        """
        nprobe = self.num_probes(k)
        if self._ef_search:
            ef_search = self._ef_search if nprobe <= self._nprobe else max(self._ef_search, 2 * nprobe)
            graph = faiss.SearchParametersHNSW(efSearch=ef_search)  # per call, since threads share an index
            to_cells, cells = self.faiss.quantizer.search(queries, nprobe, params=graph)
        else:
            to_cells, cells = _largest(queries @ self.centroids.T, nprobe)
        return search_cells(index, queries, cells, to_cells, k, selector)

    def _nearest_rows(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = self._in_near_cells(queries, k, selector)
        short = np.flatnonzero(rows[:, -1] < 0)  # Faiss pads with row -1 where the probed cells held too few items
        for chunk in np.split(short, range(_EXHAUSTIVE_CHUNK, len(short), _EXHAUSTIVE_CHUNK)):
            if len(chunk):
                scores[chunk], rows[chunk] = self._in_all_cells(queries[chunk], k, selector)
        return scores, rows

    def _in_near_cells(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows [n, k], row -1 where the nearest cells hold fewer."""
        return self.search_near(self.faiss, queries, k, selector)

    def _in_all_cells(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The same where no cell is left out."""
        return search_all_cells(self.faiss, self.centroids, queries, k, selector)


class RerankedIvfIndex(IvfHnswIndex):
    """Its codes have 4 bits a dimension: scanned several times as fast as 8, in tables that stay in registers, but too
    coarse to rank. So more items than asked for are taken from them, and ranked by their INT8 rows.
    """

    def __init__(
        self, index: Any, ids: NDArray[np.int64], int8_rows: Int8Rows, nprobe: int, ef_search: int, num_threads: int = 0
    ) -> None:
        super().__init__(index, ids, nprobe, ef_search, num_threads)
        self._int8_rows = int8_rows

    def _in_near_cells(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        taken = min(_TAKEN_A_K * k + _TAKEN_MORE, self.num_items)
        _, rows = self.search_near(self.faiss, queries, taken, selector)
        return self._int8_rows.best(queries, rows, k)

    def _in_all_cells(
        self, queries: NDArray[np.float32], k: int, selector: Any
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        return self._int8_rows.best_of_all(queries, k, None if selector is None else self._shown)


def search_all_cells(
    index: Any, centroids: NDArray[np.float32], queries: NDArray[np.float32], k: int, selector: Any = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scan every cell of an IVF index: scores and rows [n, k], row -1 where it holds fewer.

    The graph is left out, since it does not promise to reach each centroid.
    """
    to_cells = queries @ centroids.T  # [n, nlist]
    return search_cells(index, queries, np.tile(np.arange(index.nlist), (len(queries), 1)), to_cells, k, selector)


def search_cells(
    index: Any,
    queries: NDArray[np.float32],
    cells: NDArray[np.int64],
    to_cells: NDArray[np.float32],
    k: int,
    selector: Any = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scan these cells [n, p] of an IVF index (-1 = none), of which `to_cells` [n, p] says the products with queries.

    Returns scores and rows [n, k], row -1 where the cells hold fewer.
    """
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    probes = faiss.SearchParametersIVF(nprobe=cells.shape[1], sel=selector)
    given = [np.ascontiguousarray(array) for array in (queries, cells, to_cells)]
    # Faiss's Python call of this name takes no parameters, so the one below it is called.
    arrays = [faiss.swig_ptr(array) for array in (*given, scores, rows)]
    index.search_preassigned_c(len(queries), arrays[0], k, *arrays[1:], False, probes)
    return scores, rows


def _largest(values: NDArray[np.float32], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `count` largest of each row, in no order, and their columns."""
    columns = np.argpartition(values, -count, axis=1)[:, -count:]
    return np.take_along_axis(values, columns, axis=1), columns


def open_index(folder: Path, num_threads: int = 0, device: str = "cpu") -> MainIndex:
    """Memory-map an index folder. num_threads: of Faiss in each search, 0 = OpenMP's default.

    device: "cuda:N" copies an IVF index to a GPU as well; an exact one is for small corpora and stays on the CPU.
    Raises InvalidRelease, and InvalidConfig for a device that Faiss does not see.
    """
    facts = _read_facts(folder)
    try:
        # IFC = in-memory inverted lists over the mapped file: shared pages at RAM speed, unlike IO_FLAG_MMAP.
        index = faiss.read_index(str(folder / "index.faiss"), faiss.IO_FLAG_MMAP_IFC)
        ids = np.load(folder / "ids.npy", mmap_mode="r", allow_pickle=False)
    except (RuntimeError, MemoryError, OSError, ValueError) as error:
        raise InvalidRelease(f"index: index.faiss or ids.npy cannot be opened: {type(error).__name__}") from error
    kind = (
        "ivf_hnsw" if isinstance(index, faiss.IndexIVF) else "flat" if isinstance(index, faiss.IndexFlat) else "other"
    )
    found = {"kind": kind, "num_items": index.ntotal, "dim": index.d}
    expected = {key: facts.get(key) for key in found}
    if found != expected:
        raise InvalidRelease(f"index: index.faiss holds {found}; index.json: {expected}")
    if ids.shape != (index.ntotal,) or ids.dtype != np.int64:
        raise InvalidRelease(f"index: ids.npy is {ids.dtype} {list(ids.shape)}; allowed: int64 [{index.ntotal}]")
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise InvalidRelease("index: index.faiss does not compare by inner product")
    if facts["kind"] == "flat":
        return FlatIndex(index, ids, num_threads)
    probes = facts["nprobe"], facts["ef_search"]
    if isinstance(index, faiss.IndexIVFPQFastScan):
        if device != "cpu":
            raise InvalidConfig(f"retrieve.codes has value 'pq4'; allowed on {device}: sq8, fp16, float32")
        return RerankedIvfIndex(index, ids, Int8Rows.open(folder, len(ids), index.d), *probes, num_threads)
    if device == "cpu":
        return IvfHnswIndex(index, ids, *probes, num_threads)
    from pinrec_core.retrieve.gpu_index import GpuIvfIndex  # which builds on this module

    return GpuIvfIndex(index, ids, *probes, num_threads, device)


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError) as error:
        raise InvalidRelease(f"index: index.json is missing or not JSON: {type(error).__name__}") from error
    numbers = ("num_items", "dim", "nprobe", "ef_search")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise InvalidRelease(f"index: index.json is not of format {FORMAT}")
    for key in numbers:
        if not isinstance(facts.get(key), int):
            raise InvalidRelease(f"index: index.json has {key} {facts.get(key)!r}; allowed: an integer")
    return facts
