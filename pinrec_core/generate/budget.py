"""Budgets: outcome weights > shares > integer counts that sum exactly (paper, sections 4.3.1 and 4.4.3). numpy only."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidRequest

_QUOTA_DECIMALS = 9
"""Quotas are compared to 1e-9: 0.57 x 50 is 28.499999999999996 in floating point and must tie with 0.43 x 50 = 21.5."""


def normalize(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights float [A] -> shares float64 [A] that sum to 1.

    Raises InvalidRequest if a weight is negative, NaN or infinite, or if none is positive.
    """
    values = np.asarray(weights, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise InvalidRequest("budget", values.tolist(), "finite weights, none negative, at least one positive")
    scaled = values / values.max()  # so that the sum of huge weights stays finite
    shares: NDArray[np.float64] = scaled / scaled.sum()
    return shares


def allocate(shares: NDArray[np.floating], total: int) -> NDArray[np.int64]:
    """Split `total` by largest remainder: B(a) x N as integers (section 4.3.1).

    shares: float64 [n], non-negative, sum 1. Returns int64 [n] that sums to `total`. Each part gets the whole part of
    its quota; the places left go to the largest remainders, ties to the larger share, then to the earlier part.
    """
    shares = _checked(shares, total)
    quotas = np.round(shares * total, _QUOTA_DECIMALS)
    counts = np.floor(quotas).astype(np.int64)
    by_remainder = np.lexsort((np.arange(len(shares)), -shares, -np.round(quotas - counts, _QUOTA_DECIMALS)))
    counts[by_remainder[: total - counts.sum()]] += 1
    return counts


def allocate_stochastic(shares: NDArray[np.floating], total: int, seed: int) -> NDArray[np.int64]:
    """Split `total` by one multinomial draw: each place picks its part by the shares (section 4.3.1).

    shares: float64 [n], non-negative, sum 1. Returns int64 [n] that sums to `total`, the same for the same `seed`.
    """
    shares = _checked(shares, total)
    counts = np.zeros(len(shares), dtype=np.int64)
    drawable = np.flatnonzero(shares)  # the draw gives rounding errors to its last part, which must not have share 0
    counts[drawable] = np.random.default_rng(seed).multinomial(total, shares[drawable])
    return counts


def seed_of(request_id: str) -> int:
    """Seed of a request's stochastic allocation: a stable 64-bit hash, so that a repeated request is answered alike."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "little")


def _checked(shares: NDArray[np.floating], total: int) -> NDArray[np.float64]:
    """Shares as float64; the caller has validated the budget with `normalize`."""
    values = np.asarray(shares, dtype=np.float64)
    assert total >= 0
    assert (values >= 0).all()
    assert abs(values.sum() - 1.0) < 1e-6
    return values
