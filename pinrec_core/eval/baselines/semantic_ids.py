"""Semantic ids: an item as a tuple of codes, coarse to fine, from residual quantization of its vector.

Letters: N pins, L levels (the codebooks, and one that tells colliding items apart), D width of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def residual_codes(vectors: NDArray[np.float32], codebooks: int, codes: int) -> NDArray[np.int64]:
    """float32 [N, D] -> int64 [N, codebooks]: codes of Faiss' residual quantizer, trained on the vectors themselves.

    `codes` is a power of two, at most N.
    """
    import faiss

    bits = codes.bit_length() - 1
    assert 1 << bits == codes <= len(vectors), "codes is a power of two, and k-means needs as many vectors"
    quantizer = faiss.ResidualQuantizer(vectors.shape[1], codebooks, bits)
    # One beam: each code is the nearest centroid of what the codes before it left, so that ids go from coarse to fine.
    quantizer.max_beam_size = 1
    quantizer.cp.min_points_per_centroid = 1  # a small corpus is what it is
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    quantizer.train(rows)
    packed = quantizer.compute_codes(rows)
    return np.asarray(faiss.unpack_bitstrings(packed, codebooks, bits), dtype=np.int64)


def tell_apart(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 [N, L - 1] -> [N, L]: a last code that counts, from 0, the items with the same codes before it."""
    _, group = np.unique(codes, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    extra = np.empty(len(codes), dtype=np.int64)
    extra[order] = np.arange(len(codes)) - np.searchsorted(ordered, ordered)
    return np.concatenate([codes, extra[:, None]], axis=1)


@dataclass(frozen=True)
class Trie:
    """Which codes may follow: `children[l]` int32 [nodes of depth l, codes of level l] -> node of depth l + 1, or -1.

    The root is node 0 of depth 0; a node of depth L is the item's column. It holds N x codes numbers a level.
    """

    children: list[Tensor]

    @classmethod
    def of(cls, codes: NDArray[np.int64]) -> Trie:
        """int64 [N, L], no two rows alike."""
        children = []
        parent = np.zeros(len(codes), dtype=np.int64)
        for level in range(codes.shape[1]):
            size = int(codes[:, level].max()) + 1
            last = level + 1 == codes.shape[1]
            _, node = np.unique(parent * size + codes[:, level], return_inverse=True)
            node = np.arange(len(codes)) if last else node.reshape(-1)
            table = np.full((int(parent.max()) + 1, size), -1, dtype=np.int32)
            table[parent, codes[:, level]] = node
            children.append(torch.from_numpy(table))
            parent = node
        return cls(children)

    def sizes(self) -> list[int]:
        """Codes of each level: L."""
        return [table.size(1) for table in self.children]
