"""Learned ID embedding: k hashes of an item id into a large table, then an MLP (paper, sections 4.1 and 4.4.2).

Training holds the table as a parameter. A release holds the MLP and the hashing as a TorchScript module and the table
as separate row-range shards (`id_tables.py`), memory-mapped, so that every process of a host shares one copy; the
module takes them as an input. Letters: n items, k hashes, R rows a hash, E width of a row, D_id output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pinrec_core.config import ModelConfig
from pinrec_core.messages import EmbedItemsInput, IdEmbeddings
from pinrec_core.model.id_tables import Codes, decode_rows, gather_rows, open_shards, write_tables
from pinrec_core.model.mlp import skipped_mlp
from pinrec_core.release import Release


def hash_rows(item_ids: Tensor, num_hashes: int, rows_per_hash: int) -> Tensor:
    """Row of the stacked table for each hash: int64 [n] -> int64 [n, k], column j within [j R, (j + 1) R).

    splitmix64's finalizer over `id + (j + 1) * golden`; torch's int64 wraps on overflow and its right shift is
    arithmetic, so the shifted-in sign bits are masked off. TorchScript closes over no globals: the constants
    0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB stand here as signed integers.
    """
    seeds = torch.arange(1, num_hashes + 1, dtype=torch.int64, device=item_ids.device) * -7046029254386353131
    x = item_ids.unsqueeze(-1) + seeds  # [n, k]
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    x = x ^ ((x >> 31) & 0x1FFFFFFFF)
    bucket = (x & 0x7FFFFFFFFFFFFFFF) % rows_per_hash
    return bucket + torch.arange(num_hashes, dtype=torch.int64, device=item_ids.device) * rows_per_hash


class HashIdEmbedding(nn.Module):
    """The trained form: table [k * R, E] as a parameter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_hashes = config.num_hashes
        self.rows_per_hash = config.hash_rows
        self.table = nn.Embedding(config.num_hashes * config.hash_rows, config.hash_dim)
        rows_dim = config.num_hashes * config.hash_dim
        self.mlp = skipped_mlp(config.skips, rows_dim, config.id_dim, config.id_dim, config.id_layers)
        nn.init.normal_(self.table.weight, std=0.02 if config.skips else 0.1)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Int64 [...] -> float [..., D_id]."""
        flat = item_ids.reshape(-1)
        rows = hash_rows(flat, self.num_hashes, self.rows_per_hash)  # [n, k]
        hidden: Tensor = self.mlp(self.table(rows).flatten(1))  # [n, k E] -> [n, D_id]
        return hidden.reshape(*item_ids.shape, hidden.size(-1))


class ServedIdEmbedding(nn.Module):
    """The served form: hashing and MLP only; the table comes in as shards."""

    def __init__(self, trained: HashIdEmbedding) -> None:
        super().__init__()
        self.num_hashes = trained.num_hashes
        self.rows_per_hash = trained.rows_per_hash
        self.mlp = trained.mlp

    def forward(self, item_ids: Tensor, shards: list[Tensor], rows_per_shard: int) -> Tensor:
        """Int64 [n], shards of `open_shards` -> float32 [n, D_id]."""
        rows = hash_rows(item_ids, self.num_hashes, self.rows_per_hash)  # [n, k]
        picked = decode_rows(gather_rows(rows.reshape(-1), shards, rows_per_shard))  # [n k, E]
        return self.mlp(picked.reshape(item_ids.size(0), -1))  # type: ignore[no-any-return]


def export_id_embedding(trained: HashIdEmbedding, folder: Path, num_shards: int = 1, codes: Codes = "fp16") -> None:
    """Write `id_embedding.pt` and `id_tables/` of a release."""
    torch.jit.script(ServedIdEmbedding(trained).eval()).save(str(folder / "id_embedding.pt"))
    table = trained.table.weight.detach().float().cpu().numpy()  # [k R, E]
    write_tables(table, folder / "id_tables", num_shards, codes)


class IdEmbedder:
    """The `embed_items` stage: item ids -> id embeddings, one batched call."""

    def __init__(self, module: torch.jit.ScriptModule, shards: list[Tensor], rows_per_shard: int) -> None:
        self._module = module
        self._shards = shards
        self._rows_per_shard = rows_per_shard

    @classmethod
    def open(cls, release: Release) -> IdEmbedder:
        """Open the ID embedding of a release."""
        return cls.load(release.path)

    @classmethod
    def load(cls, folder: Path) -> IdEmbedder:
        """Load the module and map the tables that `export_id_embedding` wrote to `folder`."""
        shards, rows_per_shard = open_shards(folder / "id_tables")
        return cls(torch.jit.load(str(folder / "id_embedding.pt")), shards, rows_per_shard)

    @torch.inference_mode()
    def embed(self, item_ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """Int64 [n] -> float16 [n, D_id]."""
        ids = torch.from_numpy(np.array(item_ids, dtype=np.int64))
        id_emb: NDArray[np.float16] = self._module(ids, self._shards, self._rows_per_shard).to(torch.float16).numpy()
        return id_emb

    def run(self, batch: Sequence[EmbedItemsInput]) -> list[IdEmbeddings]:
        """Embed all requests' ids at once and split the answer."""
        lengths = [len(request.item_ids) for request in batch]
        id_emb = self.embed(np.concatenate([request.item_ids for request in batch]))
        return [IdEmbeddings(rows) for rows in np.split(id_emb, np.cumsum(lengths)[:-1])]
