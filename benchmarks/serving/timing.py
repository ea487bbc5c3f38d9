"""Times of several things that are done in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Times = dict[str, list[float]]
"""Milliseconds of each thing, one a round."""


def interleaved(subjects: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> Times:
    """Do each thing once a round, after `warm_up` rounds that do not count."""
    times: Times = {name: [] for name in subjects}
    for round_ in range(-warm_up, rounds):
        for name, subject in subjects.items():
            started = time.perf_counter()
            subject()
            if round_ >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return times


def median(values: list[float]) -> float:
    """Milliseconds."""
    return float(np.median(values))


def spread(values: list[float]) -> tuple[float, float]:
    """10th and 90th percentile."""
    low, high = np.percentile(values, [10, 90])
    return float(low), float(high)


def ratio(times: Times, this: str, that: str) -> tuple[float, float, float]:
    """Median over rounds of one thing's time over another's in the same round, and its 10th and 90th percentile."""
    ratios = (np.array(times[this]) / np.array(times[that])).tolist()
    return (median(ratios), *spread(ratios))


def shown(values: list[float]) -> str:
    """As "12.3 ms [11.9, 13.0]"."""
    low, high = spread(values)
    return f"{median(values):.2f} ms [{low:.2f}, {high:.2f}]"


def shown_ratio(value: tuple[float, float, float]) -> str:
    """As "0.42 [0.40, 0.45]"."""
    middle, low, high = value
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"
