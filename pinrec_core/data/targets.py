"""Which future events each position of a sequence is trained on (paper, section 4.3.2 and Eq. 5).

Position t has seen the first t events (0 is the start token). A target offset t' - t counts target events only: pins
engaged with one of the vocabulary's positive actions. Search queries and other actions are context, never targets. The
window is half-open: exactly `window_size` target events from t' on (Eq. 5 prints a closed one: one more).

Two ways to use a window. Nearest: some offsets are drawn for a position, and each looks for its target in the window
that begins there (Eq. 5). One to one: the window begins at the next target and is one set; its targets of one outcome
make a group with as many rows, offsets 1 to the size of the group, and the loss gives each row a target of its own.
Letters: B batch, T events, S offsets drawn a position, W window, P trained positions, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import Config


@dataclass(frozen=True)
class TargetPlan:
    """How targets are drawn for one variant: `uc` and `oc` predict the next target event only."""

    max_offset: int
    window_size: int
    offsets_per_position: int
    next_share: float
    same_outcome: bool
    one_to_one: bool = False
    position_share: float = 1.0

    @classmethod
    def of(cls, config: Config) -> TargetPlan:
        """The plan that a configuration's variant and targets make."""
        t = config.targets
        if config.model.variant != "mt_oc":
            return cls(1, 1, 1, 1.0, t.same_outcome, position_share=t.position_share)
        one_to_one = t.window_pick == "one_to_one"
        return cls(
            t.max_offset, t.window_size, t.offsets_per_position, t.next_share, t.same_outcome, one_to_one,
            t.position_share,
        )  # fmt: skip


@dataclass(frozen=True)
class Targets:
    """Rows that are trained: a position, what it is conditioned on, and the targets that it may be given."""

    sequence: NDArray[np.int64]
    """[R]: row of the batch."""
    position: NDArray[np.int64]
    """[R]: events seen, 0 to T."""
    outcome: NDArray[np.int64]
    """[R]: outcome index of the target at t'."""
    offset: NDArray[np.int64]
    """[R], 1-based: t' - t, or the row's place in its group."""
    surface: NDArray[np.int64]
    """[R]: surface code of the target at t', or of the group's first."""
    events: NDArray[np.int64]
    """[R, W]: place of each target within its sequence (0 where masked)."""
    mask: NDArray[np.bool_]
    """[R, W]: false past the sequence's end, and for other outcomes if the window holds one outcome only."""
    group: NDArray[np.int64]
    """[R], ascending: rows of one group share their targets, and there are as many of them as targets."""


class _Counts(NamedTuple):
    """Where the target events of each sequence lie."""

    seen: NDArray[np.int64]
    """[B, T+1]: among the first t events."""
    left: NDArray[np.int64]
    """[B, T+1]: after them; 0 where the position is not trained."""
    total: NDArray[np.int64]
    """[B]"""
    nth: NDArray[np.int64]
    """[B, T]: place of the n-th one, then of all other events."""

    def window(
        self, sequence: NDArray[np.int64], first: NDArray[np.int64], size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Events [n, size] from the `first`-th target (from 0, [n]) of each sequence on; false where none is left."""
        place = first[:, None] + np.arange(size)
        mask = place < self.total[sequence][:, None]
        events = self.nth[sequence[:, None], np.minimum(place, self.nth.shape[1] - 1)]
        return np.where(mask, events, 0), mask


def sample_targets(
    outcomes: NDArray[np.int32],
    surfaces: NDArray[np.int32],
    trains_start: NDArray[np.bool_],
    plan: TargetPlan,
    rng: np.random.Generator,
) -> Targets:
    """Draw positions and offsets and look up their windows.

    outcomes [B, T]: outcome index of each event, -1 where it is no target or padding; surfaces [B, T]: codes;
    trains_start [B]: whether position 0 is trained.
    """
    counts = _count(outcomes >= 0, trains_start)
    if plan.position_share < 1.0:
        counts.left[rng.random(counts.left.shape) >= plan.position_share] = 0
    if plan.one_to_one:
        return _one_to_one(outcomes, surfaces, counts, plan)
    return _nearest(outcomes, surfaces, counts, plan, rng)


def _count(is_target: NDArray[np.bool_], trains_start: NDArray[np.bool_]) -> _Counts:
    batch, length = is_target.shape
    seen = np.zeros((batch, length + 1), dtype=np.int64)
    np.cumsum(is_target, axis=1, out=seen[:, 1:])
    left = seen[:, -1:] - seen
    left[~trains_start, 0] = 0
    return _Counts(seen, left, seen[:, -1], np.argsort(~is_target, axis=1, kind="stable"))


def _nearest(
    outcomes: NDArray[np.int32],
    surfaces: NDArray[np.int32],
    counts: _Counts,
    plan: TargetPlan,
    rng: np.random.Generator,
) -> Targets:
    """A row for each drawn offset, a group of its own."""
    drawn = _draw_offsets(counts.left, plan, rng)  # [B, T+1, S]
    sequence, position, place = np.nonzero(np.broadcast_to(counts.left[..., None] > 0, drawn.shape))
    offset = drawn[sequence, position, place]
    events, mask = counts.window(sequence, counts.seen[sequence, position] + offset - 1, plan.window_size)  # [R, W]
    outcome = outcomes[sequence[:, None], events]
    if plan.same_outcome:
        mask &= outcome == outcome[:, :1]
    return Targets(
        sequence=sequence,
        position=position,
        outcome=outcome[:, 0].astype(np.int64),
        offset=offset,
        surface=surfaces[sequence, events[:, 0]].astype(np.int64),
        events=np.where(mask, events, 0),
        mask=mask,
        group=np.arange(len(sequence)),
    )


def _one_to_one(outcomes: NDArray[np.int32], surfaces: NDArray[np.int32], counts: _Counts, plan: TargetPlan) -> Targets:
    """A row for each target of the window that begins at the next one."""
    sequence, position = np.nonzero(counts.left > 0)  # [P]
    events, mask = counts.window(sequence, counts.seen[sequence, position], plan.window_size)  # [P, W]
    outcome = np.where(mask, outcomes[sequence[:, None], events], -1)
    alike = mask[:, :, None] & mask[:, None]  # [P, W, W]: targets of one group
    if plan.same_outcome:
        alike &= outcome[:, :, None] == outcome[:, None]
    first = alike.argmax(axis=2)  # [P, W]: place of the group's first target
    rank = np.tril(alike).sum(axis=2)  # [P, W], from 1
    row, place = np.nonzero(mask)
    order = np.lexsort((place, first[row, place], row))  # a group's rows together
    row, place = row[order], place[order]
    _, group = np.unique(row * plan.window_size + first[row, place], return_inverse=True)
    own = alike[row, place]  # [R, W]
    return Targets(
        sequence=sequence[row],
        position=position[row],
        outcome=outcome[row, place].astype(np.int64),
        offset=rank[row, place].astype(np.int64),
        surface=surfaces[sequence[row], events[row, first[row, place]]].astype(np.int64),
        events=np.where(own, events[row], 0),
        mask=own,
        group=group.astype(np.int64),
    )


def _draw_offsets(left: NDArray[np.int64], plan: TargetPlan, rng: np.random.Generator) -> NDArray[np.int64]:
    """t' ~ p(. | t) of Eq. 5 for `left` targets ahead, [B, T+1] -> [B, T+1, S]; 1 where none is left.

    An offset is 1 with probability `next_share`, else uniform over [1, min(max_offset, targets left)]: t_lim never lies
    past the sequence's end, so no draw is wasted there.
    """
    shape = (*left.shape, plan.offsets_per_position)
    limit = np.clip(left, 1, plan.max_offset)[..., None]
    uniform = 1 + np.floor(rng.random(shape) * limit).astype(np.int64)
    return np.where(rng.random(shape) < plan.next_share, 1, uniform)
