"""The ID embedding's table as files: row-range shards that every process of a host maps, and none copies.

    id_tables/tables.json      how the table is cut
    id_tables/shard-00000.f16  rows of FP16
    id_tables/shard-00000.i8   or rows of INT8, each a byte a value (128 = zero) and two bytes of its scale's logarithm

A lookup reads the pages of its rows and no others, so a table may be larger than memory. Letters: R rows, E width of a
row, S shards, m rows of a lookup.
"""

from __future__ import annotations

import json
import mmap
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec_core.errors import InvalidRelease

Codes = Literal["fp16", "int8"]
SCALE_BYTES = 2
"""A little-endian number s: the scale is 2^(s / 1024 - 32). TorchScript cannot read bytes as a float."""
_SUFFIX = {"fp16": "f16", "int8": "i8"}


@dataclass(frozen=True)
class IdTables:
    """tables.json: how a table of `rows` rows of `row_dim` values is cut. Only the last shard may be shorter."""

    rows: int
    rows_per_shard: int
    row_dim: int
    num_shards: int
    codes: Codes = "fp16"

    @classmethod
    def cut(cls, rows: int, row_dim: int, num_shards: int, codes: Codes = "fp16") -> IdTables:
        """A table in `num_shards` shards of equal size; fewer if there are fewer rows than it takes."""
        rows_per_shard = -(-rows // num_shards)
        return cls(rows, rows_per_shard, row_dim, -(-rows // rows_per_shard), codes)

    @classmethod
    def read(cls, folder: Path) -> IdTables:
        """What `save` wrote; a release from before there were `codes` has FP16."""
        return cls(**json.loads((folder / "tables.json").read_text()))

    def save(self, folder: Path) -> None:
        """Write tables.json."""
        (folder / "tables.json").write_text(json.dumps(asdict(self)))

    @property
    def row_bytes(self) -> int:
        """Of a row in a file."""
        return 2 * self.row_dim if self.codes == "fp16" else self.row_dim + SCALE_BYTES

    def rows_of(self, shard: int) -> int:
        """Rows of a shard."""
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    def path_of(self, folder: Path, shard: int) -> Path:
        """File of a shard."""
        return folder / f"shard-{shard:05d}.{_SUFFIX[self.codes]}"


def write_tables(table: NDArray[np.floating], folder: Path, num_shards: int = 1, codes: Codes = "fp16") -> None:
    """Write a table float [R, E] into the new `folder`."""
    rows, row_dim = table.shape
    tables = IdTables.cut(rows, row_dim, num_shards, codes)
    folder.mkdir()
    for shard in range(tables.num_shards):
        start = shard * tables.rows_per_shard
        encode_rows(table[start : start + tables.rows_of(shard)], codes).tofile(tables.path_of(folder, shard))
    tables.save(folder)


def encode_rows(rows: NDArray[np.floating], codes: Codes) -> NDArray[np.uint8]:
    """Rows as they lie in a file: float [m, E] -> uint8 [m, row_bytes]."""
    if codes == "fp16":
        return np.ascontiguousarray(rows, dtype=np.float16).view(np.uint8)
    least = np.maximum(np.abs(rows).max(axis=1) / 127, 2.0**-32)
    step = np.minimum(np.ceil(1024 * (np.log2(least) + 32)), 65_535).astype("<u2")  # rounded up, so that all values fit
    values = np.rint(rows / np.exp2(step / 1024 - 32)[:, None]) + 128
    return np.hstack([np.clip(values, 1, 255).astype(np.uint8), step[:, None].view(np.uint8)])


def decode_rows(rows: Tensor) -> Tensor:
    """Rows of a shard -> float32 [m, E]. Also TorchScript, which closes over no constants."""
    values = rows.to(torch.float32)
    if rows.dtype == torch.float16:
        return values
    step = values[:, -2:-1] + 256 * values[:, -1:]  # [m, 1]
    return (values[:, :-2] - 128) * torch.exp2(step / 1024 - 32)


def gather_rows(rows: Tensor, shards: list[Tensor], rows_per_shard: int) -> Tensor:
    """Rows of a table that is cut into shards [R / S, ...]: int64 [m] -> [m, ...]."""
    if len(shards) == 1:
        return shards[0].index_select(0, rows)
    ordered, order = torch.sort(rows)  # those of a shard lie together, in the order of the file
    starts = torch.arange(len(shards) + 1) * rows_per_shard
    bounds: list[int] = torch.searchsorted(ordered, starts).tolist()
    places = ordered.remainder(rows_per_shard)
    parts = [shard.index_select(0, places[bounds[at] : bounds[at + 1]]) for at, shard in enumerate(shards)]
    out = torch.empty([rows.size(0), shards[0].size(1)], dtype=shards[0].dtype)
    return out.index_copy_(0, order, torch.cat(parts))


def open_shards(folder: Path) -> tuple[list[Tensor], int]:
    """Memory-map `id_tables/` read-only. Raises InvalidRelease.

    Returns shards (FP16 [R / S, E], or the bytes of INT8 rows, uint8 [R / S, E + 2]) and rows a shard.
    """
    tables = IdTables.read(folder)
    shards = []
    for shard in range(tables.num_shards):
        path, rows = tables.path_of(folder, shard), tables.rows_of(shard)
        size = rows * tables.row_bytes
        if not path.is_file() or path.stat().st_size != size:
            raise InvalidRelease(f"id_tables/{path.name} is missing or not {size} bytes")
        shards.append(_mapped(path, torch.float16 if tables.codes == "fp16" else torch.uint8).reshape(rows, -1))
    return shards, tables.rows_per_shard


def _mapped(path: Path, dtype: torch.dtype) -> Tensor:
    """A file as a flat tensor that nobody writes: torch's own `from_file` maps it writable, which counts as memory
    that the process may ask for, and is refused where a table is larger than the machine.
    """
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages.madvise(mmap.MADV_RANDOM)  # or each row that is not in memory brings 32 pages around it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is read-only
        return torch.frombuffer(pages, dtype=dtype)
