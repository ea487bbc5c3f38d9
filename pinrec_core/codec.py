"""INT8 rows: how content vectors travel between stages and rest on disk (paper, section 4.4.1).

Each row keeps one float32 scale, so that a row's largest magnitude maps to 127 and the round trip errs by
at most half a step (`scale / 2`) per element.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantize(rows: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric INT8 with a scale per row.

    rows: float [N, D], finite. Returns int8 [N, D] and scale float32 [N]; a zero row has scale 0.
    """
    rows32 = np.asarray(rows, dtype=np.float32)
    scale = np.abs(rows32).max(axis=1, initial=0.0) / np.float32(127.0)
    safe = np.where(scale > 0, scale, np.float32(1.0))
    codes = np.clip(np.rint(rows32 / safe[:, None]), -127, 127).astype(np.int8)
    return codes, scale.astype(np.float32)


def dequantize(codes: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of `quantize` up to half a step: int8 [N, D], float32 [N] -> float32 [N, D]."""
    return codes.astype(np.float32) * scale[:, None]
