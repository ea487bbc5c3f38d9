"""What retrieval is measured on: the vectors of a trained world's items, and the embeddings of real requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

K = 100
"""Recall is counted among so many."""
NUM_QUERIES = 12
"""Of one request: paper, section 4.4.4."""
_BATCH = 16


@dataclass(frozen=True)
class Inputs:
    """Files of one world; `made` says how the queries came to be."""

    folder: Path
    vectors_path: Path
    made: dict[str, Any]

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """float32 [N, D], L2-normalized."""
        vectors: NDArray[np.float32] = np.load(self.vectors_path, mmap_mode="r")
        return vectors

    @cached_property
    def tuning(self) -> NDArray[np.float32]:
        """float32 [n, D]: what the release's index chose its probes on."""
        return self._array("tuning")

    @cached_property
    def requests(self) -> NDArray[np.float32]:
        """float32 [R, 12, D]: embeddings of R requests, as compression left them."""
        return self._array("requests")

    @cached_property
    def kth_tuning(self) -> NDArray[np.float32]:
        """float32 [n]: score of the k-th nearest item."""
        return self._array("kth_tuning")

    @cached_property
    def kth_requests(self) -> NDArray[np.float32]:
        """float32 [R, 12]."""
        return self._array("kth_requests")

    def _array(self, name: str) -> NDArray[np.float32]:
        array: NDArray[np.float32] = np.load(self.folder / f"{name}.npy")
        return array


def make_inputs(work: Path, scale: str, num_requests: int) -> Inputs:
    """The inputs of a scale; torch and faiss are both in this process, so nothing is timed here."""
    import faiss

    from benchmarks.serving.world import make_world
    from pinrec_core.retrieve.build import NUM_TUNING_QUERIES
    from pinrec_core.retrieve.tuning import exact_kth_scores

    world = make_world(work, scale)
    folder = work / scale / "retrieval"
    folder.mkdir(exist_ok=True)
    requests, made = _request_queries(world, num_requests)
    vectors, tuning = np.load(world.vectors), np.load(world.queries)[:NUM_TUNING_QUERIES]
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    k = min(K, len(vectors))
    kth_requests = exact_kth_scores(exact, requests.reshape(-1, requests.shape[-1]), k).reshape(requests.shape[:2])
    arrays = {
        "tuning": tuning,
        "requests": requests,
        "kth_tuning": exact_kth_scores(exact, tuning, k),
        "kth_requests": kth_requests,
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return Inputs(folder, world.vectors, made)


def _request_queries(world: Any, num_requests: int) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """The 12 embeddings that most items are to come from, of each request that keeps so many: [R, 12, D]."""
    from benchmarks.serving.workload import resolved
    from pinrec_core.recommend import Stages, recommend

    release = world.release()
    stages = Stages.open(release, world.batch_views)
    requests = [resolved(number, world.spec.users, release) for number in range(num_requests)]
    kept, taken = [], []
    for start in range(0, num_requests, _BATCH):
        for answer in recommend(requests[start : start + _BATCH], stages):
            generated = answer.generated
            kept.append(len(generated.embeddings))
            # Requests that keep fewer repeat what they have, so that each asks for as much.
            largest = np.resize(np.argsort(-generated.allocation, kind="stable"), NUM_QUERIES)
            taken.append(generated.embeddings[largest])
    made = {
        "requests": num_requests,
        "generated": int(answer.generated.num_generated),
        "kept_p10_p50_p90": np.percentile(kept, [10, 50, 90]).tolist(),
        "fewer_than_12": int((np.array(kept) < NUM_QUERIES).sum()),
    }
    return np.ascontiguousarray(np.stack(taken), dtype=np.float32), made
