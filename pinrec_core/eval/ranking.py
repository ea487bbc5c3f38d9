"""Which targets are within the top k of each query, and what each query retrieves: two ways that agree.

`rank_scores` is the plain one: it is handed the scores of the whole corpus. `rank_vectors` is handed vectors, goes
through the corpus in chunks and keeps a running top k + 1, so that no [U, J, N] is ever held: 1,000,000 items fit.
Which of several items that tie at the last place is retrieved is left open by both; the hits (Eq. 6) are not.
Letters: U users, J queries a user, Q = U J, Z targets a user, N items of the corpus, C items of a chunk, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pinrec_core.eval import metrics

ITEMS_AT_ONCE = 1 << 14
"""Most items of a chunk: with 128 users of 8 queries its scores take 64 MiB."""
_MAX_SCORES = 1 << 26
"""Scores (Q x C, 256 MiB) held at a time: more queries make smaller chunks."""
_BLOCK = 64
"""Items whose largest score stands for them all in the first round of a top k."""


@dataclass(frozen=True)
class Ranking:
    """hits bool [U, J, Z]; retrieved int64 [U, J, k] columns of the corpus, best first, -1 where there is none."""

    hits: Tensor
    retrieved: Tensor


@dataclass(frozen=True)
class Seen:
    """Items that a user must not get: row int64 [n] of a batch and column int64 [n] of the corpus."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def nothing(cls) -> Seen:
        """Nobody has seen anything."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))

    def to(self, device: torch.device) -> Seen:
        """Move to a device."""
        return Seen(self.rows.to(device), self.columns.to(device))

    def sorted(self) -> Seen:
        """By column."""
        order = self.columns.argsort()
        return Seen(self.rows[order], self.columns[order])

    def between(self, start: int, stop: int) -> Seen:
        """Of sorted ones: those of the columns [start, stop), counted from `start`."""
        first, last = torch.searchsorted(self.columns, torch.tensor([start, stop], device=self.columns.device)).tolist()
        return Seen(self.rows[first:last], self.columns[first:last] - start)


def rank_scores(scores: Tensor, targets: Tensor, seen: Seen, k: int) -> Ranking:
    """Scores float32 [U, J, N] (changed: what was seen becomes -inf), targets int64 [U, Z], -1 = not in the corpus."""
    seen = seen.to(scores.device)
    scores[seen.rows, :, seen.columns] = -torch.inf
    top = scores.topk(min(k + 1, scores.size(-1)), dim=-1)
    return _ranking(top.values, top.indices, _at(scores, targets.to(scores.device)), k)


def rank_vectors(
    queries: Tensor,
    real: Tensor,
    vectors: Tensor,
    targets: Tensor,
    seen: Seen,
    k: int,
    items_at_once: int | None = None,
) -> Ranking:
    """The same of dot products, in memory that does not grow with N.

    queries float32 [U, J, D]; real bool [U, J], which of them a user has; vectors float32 [N, D]; targets int64 [U, Z].
    items_at_once: C, by default from the number of queries.
    """
    users, num_queries, _ = queries.shape
    items_at_once = items_at_once or chunk_size(users * num_queries)
    flat = queries.flatten(0, 1)  # [Q, D]
    seen, targets = seen.to(queries.device).sorted(), targets.to(queries.device)
    at_targets = queries.new_full((users, num_queries, targets.size(1)), -torch.inf)
    best = queries.new_full((len(flat), 0), -torch.inf)  # [Q, <= k + 1]
    columns = targets.new_empty((len(flat), 0))
    for start in range(0, len(vectors), items_at_once):
        stop = min(start + items_at_once, len(vectors))
        scores = (flat @ vectors[start:stop].T).view(users, num_queries, -1)  # [U, J, C]
        gone = seen.between(start, stop)
        scores[gone.rows, :, gone.columns] = -torch.inf
        # A score is computed once, so that a target ties with itself whatever order the sums were made in.
        here = torch.where((targets >= start) & (targets < stop), targets - start, -1)
        at_targets = torch.maximum(at_targets, _at(scores, here))
        values, places = _largest(scores.flatten(0, 1), k + 1)
        best, columns = torch.cat([best, values], dim=1), torch.cat([columns, places + start], dim=1)
        best, kept = best.topk(min(k + 1, best.size(1)), dim=1)
        columns = columns.gather(1, kept)
    shape = (users, num_queries, -1)
    best = best.view(shape).masked_fill(~real[..., None], -torch.inf)
    return _ranking(best, columns.view(shape), at_targets.masked_fill(~real[..., None], -torch.inf), k)


def chunk_size(num_queries: int) -> int:
    """C for Q queries: whole blocks, within ITEMS_AT_ONCE and the scores that may be held."""
    fitting = _MAX_SCORES // max(1, num_queries) // _BLOCK * _BLOCK
    return max(_BLOCK, min(ITEMS_AT_ONCE, fitting))


def _ranking(top_values: Tensor, top_columns: Tensor, at_targets: Tensor, k: int) -> Ranking:
    hits = metrics.target_hits(top_values, at_targets, k)
    return Ranking(hits.cpu(), top_columns.masked_fill(top_values == -torch.inf, -1)[..., :k].cpu())


def _at(scores: Tensor, columns: Tensor) -> Tensor:
    """Scores at columns int64 [U, Z]: [U, J, Z], -inf at column -1."""
    found = scores.gather(2, columns.clamp_min(0)[:, None].expand(-1, scores.size(1), -1))
    return found.masked_fill((columns < 0)[:, None], -torch.inf)


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row: values and places [Q, count] of [Q, C].

    They lie in the `count` blocks with the largest maxima: a pass over maxima costs less than a partial sort of all.
    """
    rows, width = scores.shape
    if width % _BLOCK or width // _BLOCK < 2 * count:
        plain = scores.topk(min(count, width), dim=1)
        return plain.values, plain.indices
    blocks = scores.view(rows, -1, _BLOCK)
    chosen = blocks.amax(dim=2).topk(count, dim=1).indices  # [Q, count]
    inside = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK)).flatten(1)  # [Q, count x block]
    top = inside.topk(count, dim=1)
    return top.values, chosen.gather(1, top.indices // _BLOCK) * _BLOCK + top.indices % _BLOCK
