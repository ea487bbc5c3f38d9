"""Which future events each position of a sequence is trained on (paper, section 4.3.2 and Eq. 5).

Position t has seen the first t events (0 is the start token). A target offset t' - t counts target events only: pins
engaged with one of the vocabulary's positive actions. Search queries and other actions are context, never targets. The
window is half-open: exactly `window_size` target events from t' on (Eq. 5 prints a closed one: one more).
Letters: B batch, T events, S offsets sampled a position, W window.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @classmethod
    def of(cls, config: Config) -> TargetPlan:
        """The plan that a configuration's variant and targets make."""
        t = config.targets
        if config.model.variant != "mt_oc":
            return cls(max_offset=1, window_size=1, offsets_per_position=1, next_share=1.0, same_outcome=t.same_outcome)
        return cls(t.max_offset, t.window_size, t.offsets_per_position, t.next_share, t.same_outcome)


@dataclass(frozen=True)
class Targets:
    """Targets of every position, padded; a (position, offset) pair whose `mask` is all false has none."""

    events: NDArray[np.int64]
    """[B, T+1, S, W]: place of each target within its sequence (0 where masked)."""
    mask: NDArray[np.bool_]
    """[B, T+1, S, W]: false past the sequence's end, and for other outcomes if the window holds one outcome only."""
    outcome: NDArray[np.int64]
    """[B, T+1, S]: outcome index of the target at t'."""
    offset: NDArray[np.int64]
    """[B, T+1, S]: t' - t, 1-based."""
    surface: NDArray[np.int64]
    """[B, T+1, S]: surface code of the target at t'."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[B, T+1, S]: pairs with at least one target; the one at t' is among them."""
        return self.mask[..., 0]


def sample_targets(
    outcomes: NDArray[np.int32],
    surfaces: NDArray[np.int32],
    trains_start: NDArray[np.bool_],
    plan: TargetPlan,
    rng: np.random.Generator,
) -> Targets:
    """Draw offsets and look up their windows.

    outcomes [B, T]: outcome index of each event, -1 where it is no target or padding; surfaces [B, T]: codes;
    trains_start [B]: whether position 0 is trained. An offset is 1 with probability `next_share`, else uniform over
    [1, min(max_offset, targets left)]: t_lim never lies past the sequence's end, so no draw is wasted there.
    """
    batch, length = outcomes.shape
    is_target = outcomes >= 0
    seen = np.zeros((batch, length + 1), dtype=np.int64)  # targets among the first t events
    np.cumsum(is_target, axis=1, out=seen[:, 1:])
    total = seen[:, -1]
    left = total[:, None] - seen  # [B, T+1]
    left[~trains_start, 0] = 0
    offset = _draw_offsets(left, plan, rng)  # [B, T+1, S]
    place = (seen[:, :, None] + offset - 1)[..., None] + np.arange(plan.window_size)  # [B, T+1, S, W]: n-th target
    mask = (place < total[:, None, None, None]) & (left > 0)[:, :, None, None]
    nth_target = np.argsort(~is_target, axis=1, kind="stable")  # [B, T]: events of the targets, then the rest
    rows = np.arange(batch)[:, None, None, None]
    events = np.where(mask, nth_target[rows, np.minimum(place, length - 1)], 0)
    outcome = np.where(mask, outcomes[rows, events], -1)
    if plan.same_outcome:
        mask &= outcome == outcome[..., :1]
    first = (rows[..., 0], events[..., 0])
    return Targets(
        events=np.where(mask, events, 0),
        mask=mask,
        outcome=np.maximum(outcome[..., 0], 0).astype(np.int64),
        offset=offset,
        surface=surfaces[first].astype(np.int64),
    )


def _draw_offsets(left: NDArray[np.int64], plan: TargetPlan, rng: np.random.Generator) -> NDArray[np.int64]:
    """t' ~ p(. | t) of Eq. 5 for `left` targets ahead, [B, T+1] -> [B, T+1, S]; 1 where none is left."""
    shape = (*left.shape, plan.offsets_per_position)
    limit = np.clip(left, 1, plan.max_offset)[..., None]
    uniform = 1 + np.floor(rng.random(shape) * limit).astype(np.int64)
    return np.where(rng.random(shape) < plan.next_share, 1, uniform)
