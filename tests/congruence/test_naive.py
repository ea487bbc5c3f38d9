"""The naive service of the benchmark has the same model, histories and filters: it answers what the path answers."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from benchmarks.serving.naive import NaivePath
from pinrec_core.messages import CandidateRequest
from pinrec_core.recommend import Stages, recommend

FLAT = 1


@pytest.mark.parametrize("counts", [(4, 10, 3, 13), (0, 20, 0, 0)])
def test_the_naive_service_recommends_what_the_path_does(trained, counts):
    torch.set_num_threads(1)
    release = trained.release(FLAT)
    index = faiss.read_index(str(release.path / "index" / "index.faiss"))
    naive = NaivePath(release, trained.batch_view, index.reconstruct_n(0, index.ntotal))
    stages = Stages.open(release, trained.batch_view)
    for user in (3, 4, -5):
        request = CandidateRequest(
            user_id=user,
            surface=1,
            counts=np.array(counts, np.int32),
            search_query="",
            exclude_item_ids=np.empty(0, np.int64),
            include_seen=False,
            request_time_ms=trained.dataset.watermark_ms,
            release=FLAT,
            remaining_ms=60_000,
        )
        [made] = recommend([request], stages)
        found = naive.candidates(request)
        assert len(found.candidate_ids) == sum(counts)
        np.testing.assert_array_equal(found.candidate_ids, made.candidates.candidate_ids)
        np.testing.assert_array_equal(found.candidate_outcomes, made.candidates.candidate_outcomes)
