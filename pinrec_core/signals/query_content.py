"""Content rows of search queries that a release's item table lacks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pinrec_core.codec import quantize
from pinrec_core.text_encoder import TextEncoder

_KEPT_TEXTS = 16_384
"""Least recently used ones are dropped above this; a row of 64 dimensions and its text take about 300 bytes."""


class QueryContent:
    """INT8 content of texts by one text encoder, newest ones kept: a user's typed queries come with every request."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._rows: OrderedDict[str, tuple[NDArray[np.int8], np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, texts: Sequence[str]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """Content int8 [n, D_sem] and scale float32 [n] of n >= 1 texts; an empty text gives a zero row of scale 0."""
        with self._lock:
            known = {text: self._rows[text] for text in texts if text in self._rows}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            content, scale = quantize(self._encoder.encode(new))
            known.update(zip(new, zip(content, scale, strict=True), strict=True))
        with self._lock:
            for text in known:
                self._rows[text] = known[text]
                self._rows.move_to_end(text)
            while len(self._rows) > _KEPT_TEXTS:
                self._rows.popitem(last=False)
        rows = [known[text] for text in texts]
        return np.stack([content for content, _ in rows]), np.array([scale for _, scale in rows], dtype=np.float32)
