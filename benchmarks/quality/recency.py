"""Recency bias (paper, appendix A.1): are older interests served too?

On the synthetic world new users alternate between two interests and end with a run of one: how often do candidates hold
both? On KuaiRand: of the targets that look like something in a user's older history and like nothing among the newest
events, what share is found?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import steering
from benchmarks.quality.worlds import World
from pinrec_core.codec import dequantize
from pinrec_core.config import load_config
from pinrec_core.data.batches import content_rows
from pinrec_core.data.synthetic import SyntheticWorld
from pinrec_core.eval.evaluate import HeldOut

NEWEST = 4
"""Events at the end of a history that a recency bias listens to."""
ALIKE = 0.5
"""Cosine of content above which two items count as one interest."""


_WINDOW: dict[str, Any] = {
    "targets.window_size": 12,
    "targets.max_offset": 12,
    "generate.offsets_per_step": 12,
    "targets.position_share": 0.25,
}
"""Of mt_oc: all of a branch's 12 embeddings in one step, for a future that reaches beyond the newest interest."""


def synthetic_coverage(work: Path, variants: Sequence[str], seed: int, steps: int) -> dict[str, float]:
    """Share of the probes whose candidates cover both interests, for each variant trained with `seed`."""
    world = SyntheticWorld(steering.SPEC)
    folder = work / f"seed-{seed}-steps-{steps}"
    if not (folder / "data" / "dataset.json").exists():
        world.write(folder / "data", progress=True)
    overrides: dict[str, Any] = {"train.max_minutes": 0.0, "train.seed": seed}
    overrides |= {"train.max_steps": steps} if steps else {}
    found = {}
    for variant in variants:
        own = overrides | (_WINDOW if variant == "mt_oc" else {})
        base = load_config(steering.ROOT / "configs/synthetic.toml", own)
        found[variant] = steering.coverage(steering.prepare(variant, world, folder, base))
    return found


def older_interest(world: World, users: list[HeldOut]) -> NDArray[np.bool_]:
    """Bool [Z], targets of all users in order: whether only the older part of the history has anything alike."""
    found = [_older(world, user) for user in users]
    return np.concatenate([np.empty(0, np.bool_), *found])


def _older(world: World, user: HeldOut) -> NDArray[np.bool_]:
    """Bool [Z] of one user's targets."""
    h = world.dataset.histories
    past, targets = (_content(world, h.item_ids[at]) for at in (slice(user.start, user.stop), user.targets))
    alike = targets @ past.T >= ALIKE  # [Z, n]
    return np.asarray(alike[:, :-NEWEST].any(axis=1) & ~alike[:, -NEWEST:].any(axis=1))


def _content(world: World, item_ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit rows [n, D_sem]; zero where an item has no content."""
    rows = dequantize(*content_rows(world.dataset.items, item_ids))
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1.0), dtype=np.float32)
