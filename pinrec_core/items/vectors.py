"""Vectors of items as serving makes them: INT8 content, FP16 ID tables, the release's item embedder (section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pinrec_core import codec
from pinrec_core.items.changes import ItemChanges
from pinrec_core.items.content import item_content
from pinrec_core.items.log import Item
from pinrec_core.model.id_embedding import IdEmbedder
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import Release
from pinrec_core.schema import ItemType
from pinrec_core.text_encoder import TextEncoder


@torch.inference_mode()
def pin_vectors(
    model: PinRec,
    id_embedder: IdEmbedder,
    item_ids: NDArray[np.int64],
    content: NDArray[np.int8],
    scale: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Item embeddings of pins: int64 [n], int8 [n, D_sem], float32 [n] -> float32 [n, D], L2-normalized."""
    id_emb = torch.from_numpy(id_embedder.embed(item_ids).astype(np.float32))
    types = torch.full((len(item_ids),), int(ItemType.PIN))
    vectors: NDArray[np.float32] = model.embed_items(
        torch.from_numpy(codec.dequantize(content, scale)), types, id_emb
    ).numpy()
    return vectors


class ItemVectors:
    """Makes the vectors of added items for one release."""

    def __init__(self, model: PinRec, id_embedder: IdEmbedder, encoder: TextEncoder, items_sequence: int = 0) -> None:
        self._model = model
        self._id_embedder = id_embedder
        self._encoder = encoder
        self.items_sequence = items_sequence
        """Changes up to this number are inside the release."""

    @classmethod
    def open(cls, release: Release) -> ItemVectors:
        """Open a release's item embedder. Raises InvalidRelease."""
        return cls(PinRec.open(release), IdEmbedder.open(release), release.text_encoder, release.items_sequence)

    @property
    def content_dim(self) -> int:
        """D_sem: width of an embedding that an item may bring."""
        return self._encoder.dim

    def run(self, batch: Sequence[Sequence[Item]]) -> list[ItemChanges]:
        """Each group of items in this release's vectors, in order."""
        return [self._changes(items) for items in batch]

    def _changes(self, items: Sequence[Item]) -> ItemChanges:
        item_ids = np.array([item.item_id for item in items], dtype=np.int64)
        deleted = np.array([item.deleted for item in items], dtype=bool)
        content, scale = item_content(items, self._encoder)
        vectors = np.zeros((len(items), self._model.config.model.embedding_dim), np.float32)
        added = np.flatnonzero(~deleted)
        if len(added):
            rows = item_ids[added], content[added], scale[added]
            vectors[added] = pin_vectors(self._model, self._id_embedder, *rows)
        return ItemChanges(item_ids, deleted, vectors, content, scale)
