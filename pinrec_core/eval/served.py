"""What a request would be served, measured: generate, compress, allocate, search, settle (sections 4.4.3 and 4.4.4).

Eq. 6 lets each embedding retrieve k items whether or not another embedding has them too. Serving does not: similar
embeddings become one with more places, and no item is given twice. Here the held-out users of `evaluate` ask for
k x num_targets candidates, with a budget after `conditioning` (their targets' outcome mix) and the configured number of
steps, and get what the retrieve stage would answer with an exact index and without fillers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.data.dataset import Dataset
from pinrec_core.eval.evaluate import TRUE_OUTCOMES, Requests, item_vectors
from pinrec_core.eval.heldout import (
    NUM_TARGETS,
    Corpus,
    HeldOut,
    batches_of,
    drop_seen_items,
    held_out,
    target_columns,
)
from pinrec_core.eval.measure import users_at_once
from pinrec_core.generate.generator import select
from pinrec_core.messages import Generated
from pinrec_core.model.pinrec import PinRec
from pinrec_core.retrieve.placement import Listing, Settlement


@torch.inference_mode()
def evaluate_served(
    model: PinRec,
    dataset: Dataset,
    user_rows: NDArray[np.int64],
    k: int = 10,
    num_targets: int = NUM_TARGETS,
    drop_seen: bool = True,
    conditioning: str = TRUE_OUTCOMES,
    vectors: Tensor | None = None,
    at_once: int | None = None,
) -> dict[str, float]:
    """Metrics of the candidates served to `user_rows` (int64, rows of the histories).

    vectors: float32 [N, D] of the corpus, where they are not to be the model's own. at_once: users of a rollout.
    `served_unordered_recall` (users with a target among them), `served_target_recall` (share of targets),
    `compression_ratio` (embeddings generated for one kept).
    """
    corpus = Corpus.of(dataset)
    model.eval()
    requests = Requests(model, dataset, conditioning)
    vectors = item_vectors(model, dataset, corpus) if vectors is None else vectors
    any_hit, share, ratio = [], [], []
    users = held_out(dataset, user_rows, num_targets)
    plan = model.config.generate
    queries = plan.num_steps * plan.offsets_per_step * len(dataset.vocabulary.outcomes)
    for batch in batches_of(users, at_once or users_at_once(queries, corpus)):
        embeddings, outcomes, counts = requests.roll_out(batch, plan)
        targets, valid = target_columns(dataset, corpus, batch, num_targets)
        for row, user in enumerate(batch):
            wanted = (k * counts[row]).astype(np.int32)
            own = outcomes[row][wanted[outcomes[row]] > 0]
            generated = select(embeddings[row, : len(own)].cpu().numpy(), own, wanted, plan)
            served = _settle(generated, wanted, vectors, (dataset, corpus, user) if drop_seen else None)
            hits = np.isin(targets[row][valid[row]].numpy(), served)
            any_hit.append(float(hits.any()))
            share.append(float(hits.mean()))
            ratio.append(generated.num_generated / generated.num_kept)
    return {
        "served_unordered_recall": _mean(any_hit),
        "served_target_recall": _mean(share),
        "compression_ratio": _mean(ratio),
    }


def _settle(
    generated: Generated,
    counts: NDArray[np.int32],
    vectors: Tensor,
    seen: tuple[Dataset, Corpus, HeldOut] | None,
) -> NDArray[np.int64]:
    """Columns of the corpus that one user is served: int64 [n], n at most the sum of counts."""
    scores = torch.from_numpy(generated.embeddings).to(vectors.device) @ vectors.T  # [K, N]
    if seen is not None:
        dataset, corpus, user = seen
        drop_seen_items(scores[None], dataset, corpus, [user])
    # No embedding goes further down its list than there are candidates in all.
    best = scores.topk(min(int(counts.sum()), scores.size(1)), dim=1)
    listings = [
        Listing(int(outcome), int(places), columns[:found].tolist(), values[:found].tolist())
        for outcome, places, columns, values, found in zip(
            generated.outcome,
            generated.allocation,
            best.indices,
            best.values,
            (best.values > -torch.inf).sum(dim=1).tolist(),
            strict=True,
        )
    ]
    settlement = Settlement(listings, counts.tolist())
    settlement.lend()
    return np.array([placed.item_id for placed in settlement.placed], dtype=np.int64)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0
