"""Who gets which item: from what each embedding found to one list without duplicates. Pure functions on plain values.

1. Each embedding has `allocation` places, filled from its own list in rank order (rank 0 = its nearest item that is not
   filtered out). An item wanted by several embeddings stays where its rank is best. Ties: the outcome with the larger
   count, then the earlier outcome; inside one outcome the higher score, then the earlier embedding. Who loses an item
   goes on down its list, where it may meet the next conflict. This is deferred acceptance (Gale and Shapley), so the
   result does not depend on the order of processing: every embedding gets the best it can keep.
2. Places left because a list ended are lent to the other embeddings of the same outcome, one at a time, to the one
   whose next item has the best rank (ties as above).
3. What an outcome still lacks is filled from popular lists.
4. The outcomes are interleaved by share: item i of an outcome's n stands at (i + 1/2) / n of the answer, ties to the
   larger n, then outcome order. Every prefix of the answer is then split like the whole (Sainte-Lague).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FILLED = -1
"""`source` of an item that no embedding found."""


@dataclass(frozen=True)
class Listing:
    """What one embedding found: distinct item ids by descending score, filtered, and how many of them it must place."""

    outcome: int
    allocation: int
    item_ids: Sequence[int]
    scores: Sequence[float]


class Claim(NamedTuple):
    """An embedding's claim to an item; of two claims the smaller holds it."""

    rank: int
    negative_count: int
    outcome: int
    negative_score: float
    embedding: int


class Placed(NamedTuple):
    """One item of the answer. `source`: the embedding that found it, or FILLED (rank and score 0)."""

    item_id: int
    outcome: int
    source: int
    rank: int
    score: float


class Settlement:
    """Rules 1 and 2 for one request. listings: one an embedding; counts: items wanted of each outcome."""

    def __init__(self, listings: Sequence[Listing], counts: Sequence[int]) -> None:
        self._listings = listings
        self._counts = counts
        self._holders: dict[int, Claim] = {}
        self._next_rank = [0] * len(listings)
        self._open = [listing.allocation for listing in listings]
        self._settle()

    @property
    def short(self) -> list[int]:
        """Embeddings whose list ended before their places were filled."""
        return [embedding for embedding, places in enumerate(self._open) if places]

    @property
    def placed(self) -> list[Placed]:
        """The items and who holds them."""
        return [
            Placed(item_id, claim.outcome, claim.embedding, claim.rank, -claim.negative_score)
            for item_id, claim in self._holders.items()
        ]

    def lend(self) -> None:
        """Rule 2, the outcome with the larger count first."""
        while (loan := self._next_loan()) is not None:
            lender, borrower = loan
            self._open[lender] -= 1
            self._open[borrower] += 1
            self._claim([borrower])

    def _settle(self) -> None:
        """Rule 1, rank by rank: everybody with open places claims its item of the rank, the best claim first.

        A claim's rank comes first in its order, so whoever holds an item is pushed out by no later rank: deferred
        acceptance has nothing left to defer.
        """
        order = [(-self._counts[listing.outcome], listing.outcome) for listing in self._listings]
        rank, waiting = 0, list(range(len(self._listings)))
        while waiting := [at for at in waiting if self._open[at] and rank < len(self._listings[at].item_ids)]:
            # Tuples in the order of `Claim`, which only a holder becomes.
            for before, negative_score, at in sorted(
                [(order[at], -self._listings[at].scores[rank], at) for at in waiting]
            ):
                item_id = self._listings[at].item_ids[rank]
                self._next_rank[at] = rank + 1
                if item_id not in self._holders:
                    self._holders[item_id] = Claim(rank, *before, negative_score, at)
                    self._open[at] -= 1
            rank += 1

    def _claim(self, waiting: list[int]) -> None:
        """Let the embeddings in `waiting`, and whomever they push out, claim items until their places or lists end."""
        while waiting:
            embedding = waiting.pop()
            listing = self._listings[embedding]
            while self._open[embedding] and self._next_rank[embedding] < len(listing.item_ids):
                rank = self._next_rank[embedding]
                item_id, claim = listing.item_ids[rank], self._claim_of(embedding, rank)
                self._next_rank[embedding] += 1
                holder = self._holders.get(item_id)
                if holder is None or claim < holder:
                    self._holders[item_id] = claim
                    self._open[embedding] -= 1
                    if holder is not None:
                        self._open[holder.embedding] += 1
                        waiting.append(holder.embedding)

    def _claim_of(self, embedding: int, rank: int) -> Claim:
        listing = self._listings[embedding]
        count = self._counts[listing.outcome]
        return Claim(rank, -count, listing.outcome, -listing.scores[rank], embedding)

    def _next_loan(self) -> tuple[int, int] | None:
        """Who lends a place to whom next, if anyone can."""
        lenders = {self._listings[embedding].outcome: embedding for embedding in self.short}
        for outcome in sorted(lenders, key=lambda outcome: (-self._counts[outcome], outcome)):
            claims = [
                self._claim_of(embedding, self._next_rank[embedding])
                for embedding, listing in enumerate(self._listings)
                if listing.outcome == outcome and self._next_rank[embedding] < len(listing.item_ids)
            ]
            if claims:
                return lenders[outcome], min(claims).embedding
        return None


def fill(
    placed: Sequence[Placed], counts: Sequence[int], popular: Sequence[Iterable[int]], blocked: Iterable[int]
) -> list[Placed]:
    """Rule 3: items from `popular` (one list an outcome) for the outcomes that lack some, the larger count first.

    Neither an item of `blocked` nor one that is already in the answer is taken. Returns only the new items.
    """
    taken = {item.item_id for item in placed}.union(blocked)
    lacking = np.asarray(counts, dtype=np.int64) - count_outcomes(placed, len(counts))
    filled: list[Placed] = []
    for outcome in sorted(range(len(counts)), key=lambda outcome: (-counts[outcome], outcome)):
        fresh = _without(taken, popular[outcome])
        filled += [Placed(item_id, outcome, FILLED, 0, 0.0) for item_id in islice(fresh, int(lacking[outcome]))]
    return filled


def _without(taken: set[int], item_ids: Iterable[int]) -> Iterator[int]:
    """Those not in `taken`, which each joins as it is given out."""
    for item_id in item_ids:
        if item_id not in taken:
            taken.add(item_id)
            yield item_id


def count_outcomes(placed: Sequence[Placed], num_outcomes: int) -> NDArray[np.int64]:
    """Items of each outcome: int64 [A]."""
    outcomes = np.array([item.outcome for item in placed], dtype=np.int64)
    return np.bincount(outcomes, minlength=num_outcomes)


def arrange(placed: Sequence[Placed]) -> list[Placed]:
    """Rule 4. Inside an outcome by descending score; ties: found before filled, earlier embedding, better rank."""
    by_score = sorted(
        range(len(placed)),
        key=lambda at: (-placed[at].score, placed[at].source == FILLED, placed[at].source, placed[at].rank, at),
    )
    totals = count_outcomes(placed, num_outcomes=0)
    seats = np.zeros(len(totals), dtype=np.int64)
    order: list[tuple[float, int, int, int]] = []
    for at in by_score:
        outcome, total = placed[at].outcome, int(totals[placed[at].outcome])
        # Dividing two integers rounds correctly, so equal fractions compare equal.
        order.append(((2 * int(seats[outcome]) + 1) / (2 * total), -total, outcome, at))
        seats[outcome] += 1
    return [placed[at] for *_, at in sorted(order)]
