"""Star ratings as engagements: the one rule of all MovieLens readers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTCOMES = ("loved", "liked", "watched")
"""Strongest first."""
DROPPED = -1
_LOWEST_STARS = (4.5, 3.5, 2.5)
"""Stars rounded half up: 5 is loved, 4 liked, 3 watched; half stars go with the star above."""


def outcome_of_stars(stars: NDArray[Any]) -> NDArray[np.int32]:
    """Place in OUTCOMES of each rating, DROPPED for what the user did not care for: [n] -> int32 [n]."""
    outcome = np.full(len(stars), DROPPED, dtype=np.int32)
    for place in reversed(range(len(OUTCOMES))):
        outcome[stars >= _LOWEST_STARS[place]] = place
    return outcome


def count_outcomes(outcome: NDArray[np.int32]) -> dict[str, int]:
    """Events by outcome name, strongest first."""
    return {name: int((outcome == place).sum()) for place, name in enumerate(OUTCOMES)}
