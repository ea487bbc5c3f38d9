"""The `retrieve` stage: embeddings and their allocations in, a few hundred item ids out (paper, section 4.4.4).

All queries of a batch go to the index in one grouped search. An embedding first asks for `overfetch_factor` times its
allocation. Where filters and duplicates eat that up, it asks again for four times as many, up to
`candidates wanted + items filtered out`: a list of that length always suffices, since an item is unusable only if it is
filtered out or already placed. An answer is therefore short only if the corpus minus the filters is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidRelease, InvalidRequest, PinrecError
from pinrec_core.messages import Candidates, RetrieveInput
from pinrec_core.release import Release
from pinrec_core.retrieve.index import Hits, open_index
from pinrec_core.retrieve.live_index import LiveIndex
from pinrec_core.retrieve.placement import Listing, Placed, Settlement, arrange, fill

_DEEPER = 4
"""How many times longer a list that ended too early is asked for again."""
_PADDING = -1


@dataclass
class _Request:
    """One request on its way: what each searched embedding (a row of its input) asked for and found."""

    input: RetrieveInput
    blocked: frozenset[int]
    most: int
    """A list of this length cannot end too early."""
    ks: dict[int, int]
    listings: dict[int, Listing] = field(default_factory=dict)
    settlement: Settlement = field(default_factory=lambda: Settlement([], []))
    """Of `listings`; its embeddings count from 0 in the order of `ks`."""

    def settle(self) -> list[int]:
        """Place what was found so far. Returns the rows whose list ended too early, with their k raised."""
        rows = list(self.ks)
        self.settlement = Settlement([self.listings[row] for row in rows], self.input.counts.tolist())
        short = [rows[embedding] for embedding in self.settlement.short if self.ks[rows[embedding]] < self.most]
        for row in short:
            self.ks[row] = min(_DEEPER * self.ks[row], self.most)
        return short

    def receive(self, row: int, hits: Hits) -> None:
        """Keep what the filters leave of an embedding's hits."""
        item_ids, scores = (part.tolist() for part in hits)
        if self.blocked:
            kept = [at for at, item_id in enumerate(item_ids) if item_id not in self.blocked]
            item_ids, scores = [item_ids[at] for at in kept], [scores[at] for at in kept]
        outcome, allocation = int(self.input.outcome[row]), int(self.input.allocation[row])
        self.listings[row] = Listing(outcome, allocation, item_ids, scores)


class Retriever:
    """The stage for one release. Safe to call from several threads.

    popular: int64 [num_surfaces + 1, A, P], see `Release.popular`. `index` takes up what changes after the release was
    made; its items are found like any other, and its deleted ones are neither found nor filled in.
    """

    def __init__(self, index: LiveIndex, popular: NDArray[np.int64], overfetch_factor: float) -> None:
        self.index = index
        self._popular = popular
        self._overfetch_factor = overfetch_factor

    @classmethod
    def open(cls, release: Release, num_threads: int = 0, device: str = "cpu") -> Retriever:
        """Open a release's index and popular lists; options as `open_index`. Raises InvalidRelease, InvalidConfig."""
        index = LiveIndex(open_index(release.path / "index", num_threads, device))
        dim = release.config.model.embedding_dim
        if index.dim != dim:
            raise InvalidRelease(f"index: vectors have {index.dim} dimensions; model.embedding_dim: {dim}")
        popular = release.popular
        lists = (len(release.vocabulary.surfaces) + 1, len(release.vocabulary.outcomes))
        if popular.ndim != 3 or popular.shape[:2] != lists or popular.dtype != np.int64:
            raise InvalidRelease(f"popular: {popular.dtype} {list(popular.shape)}; allowed: int64 {[*lists, 'P']}")
        return cls(index, popular, release.config.retrieve.overfetch_factor)

    def run(self, batch: Sequence[RetrieveInput]) -> list[Candidates | PinrecError]:
        """Answer each request, in order. One that is not valid gets its InvalidRequest and leaves the others alone.

        `release` and the deadline are the stage host's business and not read here.
        """
        planned = [self._plan(request) for request in batch]
        self._search([request for request in planned if isinstance(request, _Request)])
        return [self._answer(request) if isinstance(request, _Request) else request for request in planned]

    def _plan(self, request: RetrieveInput) -> _Request | InvalidRequest:
        try:
            self._check(request)
        except InvalidRequest as error:
            return error
        seen = [] if request.include_seen else request.seen_item_ids.tolist()
        blocked = frozenset(request.exclude_item_ids.tolist()).union(seen) - {_PADDING}
        most = min(int(request.counts.sum()) + len(blocked), self.index.num_items)
        ks = {
            int(row): min(math.ceil(self._overfetch_factor * int(request.allocation[row])), most)
            for row in np.flatnonzero(request.allocation)
        }
        return _Request(request, blocked, most, ks)

    def _check(self, request: RetrieveInput) -> None:
        """Raises InvalidRequest naming the first field that does not fit the release or the others."""
        num_surfaces, num_outcomes, _ = self._popular.shape
        num_embeddings, counts, outcome = len(request.allocation), request.counts, request.outcome
        if counts.shape != (num_outcomes,) or (counts < 0).any():
            raise InvalidRequest("counts", counts.tolist(), f"{num_outcomes} numbers, none negative")
        if not 0 <= request.surface < num_surfaces:
            raise InvalidRequest("surface", request.surface, f"codes 0 to {num_surfaces - 1}")
        if request.embeddings.shape != (num_embeddings, self.index.dim):
            raise InvalidRequest("embeddings", request.embeddings.shape, f"shape [{num_embeddings}, {self.index.dim}]")
        if not np.isfinite(request.embeddings).all():
            raise InvalidRequest("embeddings", "NaN or infinity", "finite numbers")
        if outcome.shape != (num_embeddings,) or (outcome < 0).any() or (outcome >= num_outcomes).any():
            raise InvalidRequest("outcome", outcome.tolist(), f"{num_embeddings} numbers, 0 to {num_outcomes - 1}")
        allocated = np.bincount(outcome, weights=request.allocation, minlength=num_outcomes)
        if (request.allocation < 0).any() or (allocated > counts).any():
            raise InvalidRequest(
                "allocation", request.allocation.tolist(), f"none negative, sums within counts {counts.tolist()}"
            )

    def _search(self, requests: Sequence[_Request]) -> None:
        """Search all requests at once, then again those embeddings whose lists ended too early."""
        waiting = [(request, row) for request in requests for row in request.ks]
        while waiting:
            queries = np.stack([request.input.embeddings[row] for request, row in waiting])
            hits = self.index.search(queries, [request.ks[row] for request, row in waiting])
            for (request, row), found in zip(waiting, hits, strict=True):
                request.receive(row, found)
            searched = {id(request): request for request, _ in waiting}.values()
            waiting = [(request, row) for request in searched for row in request.settle()]

    def _answer(self, request: _Request) -> Candidates:
        request.settlement.lend()
        rows = list(request.ks)
        found = [item._replace(source=rows[item.source]) for item in request.settlement.placed]
        counts = request.input.counts.tolist()
        popular = [self._popular_pins(request.input.surface, outcome) for outcome in range(len(counts))]
        return _candidates(arrange(found + fill(found, counts, popular, request.blocked)))

    def _popular_pins(self, surface: int, outcome: int) -> Iterable[int]:
        """The surface's list for an outcome, then that of all surfaces; read only as far as a filler goes."""
        lists = (self._popular[surface, outcome], self._popular[0, outcome])
        pins = (item_id for pins in lists for item_id in pins.tolist())
        return (item_id for item_id in pins if item_id != _PADDING and not self.index.is_deleted(item_id))


def _candidates(answer: Sequence[Placed]) -> Candidates:
    return Candidates(
        candidate_ids=np.array([item.item_id for item in answer], dtype=np.int64),
        scores=np.array([item.score for item in answer], dtype=np.float32),
        candidate_outcomes=np.array([item.outcome for item in answer], dtype=np.int32),
        source=np.array([item.source for item in answer], dtype=np.int32),
    )
