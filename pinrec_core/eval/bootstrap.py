"""Intervals: users are drawn again with replacement, and so are seeds where there are several.

A figure is a mean over users of per-user values, weighted where a user counts by targets. Both models of a ratio are
measured on the same users, drawn together; their seeds are drawn apart, since they are independent runs, unless both
are readings of the same trained models.
Letters: S seeds, U users, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS_AT_ONCE = 64

Values = NDArray[np.floating] | NDArray[np.bool_]
Weighted = tuple[Values, Values]
"""Values and what each counts."""


@dataclass(frozen=True)
class Interval:
    """A figure and where it lies with the confidence asked for."""

    mean: float
    low: float
    high: float

    def minus(self, value: float) -> Interval:
        """All three less `value`: a ratio becomes a relative gain with 1."""
        return Interval(self.mean - value, self.low - value, self.high - value)

    def clear_of(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def interval(
    values: Values,
    weights: Values | None = None,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` [U], or [S, U] one row a seed, over seeds and users.

    weights [U] or [S, U]: what each value counts; 1 if left out. NaN without users.
    """
    table, weight = _tables(values, weights)
    rng = np.random.default_rng(seed)
    drawn = [_means(table, weight, *_draw(table.shape, count, rng)) for count in _sizes(draws)]
    return _interval(_mean(table, weight), drawn, confidence)


def ratio_interval(
    a: Values,
    b: Values,
    weights_a: Values | None = None,
    weights_b: Values | None = None,
    *,
    same_models: bool = False,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean of `a` / mean of `b`, each [U] or [S, U] over the same users in the same order.

    `same_models`: row s of both is of one trained model, read in two ways. Infinite or NaN where b's mean is 0. Raises
    ValueError if the numbers of users differ, or those of seeds under `same_models`.
    """
    table_a, weight_a = _tables(a, weights_a)
    table_b, weight_b = _tables(b, weights_b)
    if table_a.shape[1] != table_b.shape[1]:
        raise ValueError(f"a has {table_a.shape[1]} users and b {table_b.shape[1]}; allowed: the same ones")
    if same_models and len(table_a) != len(table_b):
        raise ValueError(f"a has {len(table_a)} seeds and b {len(table_b)}; allowed: the same models")
    rng = np.random.default_rng(seed)
    drawn = []
    for count in _sizes(draws):
        users, seeds_a = _draw(table_a.shape, count, rng)
        seeds_b = seeds_a if same_models else _counts(table_b.shape[0], count, rng)
        top, bottom = _means(table_a, weight_a, users, seeds_a), _means(table_b, weight_b, users, seeds_b)
        drawn.append(_divided(top, bottom))
    mean = _divided(np.array([_mean(table_a, weight_a)]), np.array([_mean(table_b, weight_b)]))
    return _interval(float(mean[0]), drawn, confidence)


def ratio_of_ratios(
    a: tuple[Weighted, Weighted],
    b: tuple[Weighted, Weighted],
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """(a[0] / a[1]) / (b[0] / b[1]), means of values and weights [U] or [S, U] of two models on the same users.

    Both parts of a model are of the same users and seeds in each draw.
    """
    tables = [[_tables(*part) for part in model] for model in (a, b)]
    rng = np.random.default_rng(seed)

    def ratios(users: NDArray[np.float64], seeds: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        own, other = (
            _divided(*(_means(*part, users, drawn) for part in model))
            for model, drawn in zip(tables, seeds, strict=True)
        )
        return _divided(own, other)

    shapes = [model[0][0].shape for model in tables]
    drawn = []
    for count in _sizes(draws):
        users = _counts(shapes[0][1], count, rng)
        drawn.append(ratios(users, [_counts(shape[0], count, rng) for shape in shapes]))
    mean = ratios(np.ones((1, shapes[0][1])), [np.ones((1, shape[0])) for shape in shapes])
    return _interval(float(mean[0]), drawn, confidence)


def _tables(values: Values, weights: Values | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[S, U] each."""
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    weight = np.ones(1) if weights is None else np.asarray(weights, dtype=np.float64)
    return table, np.broadcast_to(weight, table.shape)


def _sizes(draws: int) -> list[int]:
    return [min(_DRAWS_AT_ONCE, draws - start) for start in range(0, draws, _DRAWS_AT_ONCE)]


def _counts(size: int, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each of `size` is drawn, [draws, size]: rows sum to `size`."""
    if size <= 1:
        return np.ones((draws, size))
    return rng.multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)


def _draw(
    shape: tuple[int, ...], draws: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of users [R, U] and of seeds [R, S]."""
    return _counts(shape[1], draws, rng), _counts(shape[0], draws, rng)


def _mean(table: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """Mean over seeds of each one's weighted mean over users."""
    users, seeds = np.ones((1, table.shape[1])), np.ones((1, table.shape[0]))
    return float(_means(table, weight, users, seeds)[0])


def _means(
    table: NDArray[np.float64], weight: NDArray[np.float64], users: NDArray[np.float64], seeds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The figure of each draw: [R]."""
    of_seed = _divided(users @ (table * weight).T, users @ weight.T)  # [R, S]
    return _divided((of_seed * seeds).sum(axis=1), seeds.sum(axis=1))


def _divided(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        result: NDArray[np.float64] = top / bottom
    return result


def _interval(mean: float, drawn: list[NDArray[np.float64]], confidence: float) -> Interval:
    """Percentiles of the draws that have a value; no interpolation, since a ratio's draw may be infinite."""
    values = np.concatenate([np.empty(0), *drawn])
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return Interval(mean, float(low), float(high))
