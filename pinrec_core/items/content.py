"""Content rows of added items, made as those of `items.parquet` are: the same item gets the same row either way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pinrec_core.codec import quantize
from pinrec_core.items.log import Item
from pinrec_core.text_encoder import TextEncoder


def item_content(items: Sequence[Item], encoder: TextEncoder) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Content int8 [n, D_sem] and scale float32 [n].

    An embedding is L2-normalized; text goes through the encoder. Zeros, so that only its id tells an item apart, where
    it was deleted, has no known words, or brings an embedding of another width than the encoder's and no text.
    """
    rows = np.zeros((len(items), encoder.dim), np.float32)
    embedded = [at for at, item in enumerate(items) if len(item.embedding) == encoder.dim]
    if embedded:
        given = np.stack([items[at].embedding for at in embedded])
        rows[embedded] = given / np.maximum(np.linalg.norm(given, axis=1, keepdims=True), np.float32(1e-12))
    worded = [at for at, item in enumerate(items) if item.text]
    if worded:
        rows[worded] = encoder.encode([items[at].text for at in worded])
    return quantize(rows)
