"""The service that a user would write: FastAPI, torch and an exact Faiss index in one process, a request at a time.

It has the same model, histories, compression, allocation and filters, and so the same answers as `recommend` with an
exact index: only what makes the stack a stack is missing. torch and Faiss wait and thread as they do by default.

    python -m benchmarks.serving.naive --releases DIR --batch-views DIR --vectors FILE --port N
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.serving.workload import NAIVE_URL
from pinrec_core.generate.generator import select
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.messages import (
    CandidateRequest,
    Candidates,
    EmbedItemsInput,
    FetchSignalsInput,
    Generated,
    GenerateInput,
    RetrieveInput,
    gather,
)
from pinrec_core.model.id_embedding import IdEmbedder
from pinrec_core.model.inputs import collate
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import Release, open_release
from pinrec_core.retrieve.index import FlatIndex
from pinrec_core.retrieve.live_index import LiveIndex
from pinrec_core.retrieve.search import Retriever
from pinrec_core.signals.batch_view import open_batch_view
from pinrec_core.signals.fetch import FixedView, SignalFetcher
from pinrec_core.signals.realtime import MemoryHistoryStore
from services.gateway.resolve import resolve
from services.proto.candidates_pb2 import GetCandidatesRequest


class NaivePath:
    """The four steps for one request. vectors: float32 [N, D], in the order of the index's ids."""

    def __init__(self, release: Release, batch_views: Path, vectors: NDArray[np.float32]) -> None:
        self.release = release
        self._signals = SignalFetcher(release, FixedView(open_batch_view(batch_views)), MemoryHistoryStore())
        self._id_embedder = IdEmbedder.open(release)
        self._model = PinRec.open(release).eval()
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        flat = LiveIndex(FlatIndex(index, np.load(release.path / "index" / "ids.npy")))
        self._retriever = Retriever(flat, release.popular, release.config.retrieve.overfetch_factor)

    def candidates(self, request: CandidateRequest) -> Candidates:
        """What is recommended. Raises PinrecError for a request that the release does not know."""
        [signals] = self._signals.run([gather(FetchSignalsInput, request)])
        [id_emb] = self._id_embedder.run([gather(EmbedItemsInput, request, signals)])
        generated = self._generate(gather(GenerateInput, request, signals, id_emb))
        [candidates] = self._retriever.run([gather(RetrieveInput, request, signals, generated)])
        if isinstance(candidates, Exception):
            raise candidates
        return candidates

    @torch.inference_mode()
    def _generate(self, request: GenerateInput) -> Generated:
        active = np.flatnonzero(request.counts)
        actions = self.release.vocabulary.action_of_outcome[active].astype(np.int64)
        branches = Branches(
            outcomes=torch.from_numpy(active)[None],
            actions=torch.from_numpy(actions)[None],
            surface=torch.tensor([request.surface]),
            request_time_ms=torch.tensor([request.request_time_ms]),
        )
        inputs = collate([request], [request.sequence_length])
        plan = self.release.config.generate
        embeddings = rollout(self._model, inputs, branches, plan)[0].numpy()  # [A, M, D]
        return select(embeddings, active, request.counts, plan)


def app(path: NaivePath, at_once: bool) -> Any:
    """The service. FastAPI calls the handler from a pool of threads; a lock makes it one request at a time."""
    from fastapi import FastAPI

    service, lock = FastAPI(), threading.Lock()
    outcomes = path.release.vocabulary.outcomes

    def answer(ask: dict[str, Any]) -> dict[str, Any]:
        now_ms = int(time.time() * 1000)
        made = path.candidates(resolve(GetCandidatesRequest(**ask), path.release, "r", now_ms, 60_000))
        rows = zip(made.candidate_ids.tolist(), made.scores.tolist(), made.candidate_outcomes.tolist(), strict=True)
        return {"candidates": [{"item_id": i, "score": s, "outcome": outcomes[o]} for i, s, o in rows]}

    def answer_in_turn(ask: dict[str, Any]) -> dict[str, Any]:
        with lock:
            return answer(ask)

    service.post(NAIVE_URL)(answer if at_once else answer_in_turn)
    return service


@click.command()
@click.option("--releases", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--batch-views", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--vectors", required=True, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--port", required=True, type=int)
@click.option(
    "--at-once/--in-turn", default=False, show_default=True, help="Whether requests may be worked on at once."
)
def main(releases: Path, batch_views: Path, vectors: Path, port: int, at_once: bool) -> None:
    """Serve until SIGTERM; GET /docs answers once it does."""
    import uvicorn

    path = NaivePath(open_release(releases, 1, verify=False), batch_views, np.load(vectors))
    uvicorn.run(app(path, at_once), host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.naive")
