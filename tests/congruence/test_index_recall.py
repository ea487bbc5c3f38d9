"""The probes that an export chose find what exact search finds, for embeddings that requests generate."""

import json

import numpy as np

from pinrec_core.messages import CandidateRequest
from pinrec_core.recommend import Stages, recommend
from pinrec_core.retrieve.index import open_index
from pinrec_core.retrieve.tuning import measure_recall

FLAT, IVF_HNSW = 1, 2
"""Releases of one model."""
K = 100


def test_the_tuned_index_reaches_its_recall_target_on_generated_embeddings(trained):
    release = trained.release(IVF_HNSW)
    facts = json.loads((release.path / "index" / "index.json").read_text())
    requests = [
        CandidateRequest(
            user_id=user,
            surface=1,
            counts=np.array([20, 10, 10, 20], np.int32),
            search_query="",
            exclude_item_ids=np.empty(0, np.int64),
            include_seen=True,
            request_time_ms=trained.dataset.watermark_ms + 1,
            release=IVF_HNSW,
            remaining_ms=60_000,
        )
        for user in range(1, 101)
    ]
    answers = recommend(requests, Stages.open(release, trained.batch_view))
    queries = np.concatenate([answer.generated.embeddings for answer in answers])
    tuned, exact = open_index(release.path / "index"), open_index(trained.release(FLAT).path / "index")
    vectors = exact.faiss.reconstruct_n(0, exact.num_items)
    ids = np.load(trained.release(FLAT).path / "index" / "ids.npy")
    assert facts["kind"] == "ivf_hnsw"
    assert len(queries) > 200
    kth_scores = np.array([scores[-1] for _, scores in exact.search(queries, [K] * len(queries))])
    found = np.stack([np.searchsorted(ids, hits) for hits, _ in tuned.search(queries, [K] * len(queries))])
    # The build tuned on other embeddings of the same users; two samples differ a little.
    assert measure_recall(vectors, queries, found, kth_scores) >= facts["recall_target"] - 0.01
