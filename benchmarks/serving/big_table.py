"""An ID table of ten billion parameters on a disk that need not hold it: a sparse file, looked up like any other."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.serving.contenders import Task
from benchmarks.serving.shared_pages import mapped_bytes
from pinrec_core.config import ModelConfig
from pinrec_core.model.id_embedding import HashIdEmbedding, IdEmbedder, ServedIdEmbedding, hash_rows
from pinrec_core.model.id_tables import IdTables, encode_rows

ROWS = 256
"""Item ids of a request."""
PARAMETERS = 10_000_000_000
SHARDS = 10


def make_big_table(folder: Path, parameters: int, requests: int) -> None:
    """A release's ID embedding over zeros with the rows of some requests' items, and what those must give."""
    if (folder / "expected.npy").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "id_tables").mkdir(parents=True)
    torch.manual_seed(0)
    config = ModelConfig(num_hashes=2, hash_rows=1, hash_dim=64, id_dim=64)
    trained = HashIdEmbedding(config).eval()
    trained.rows_per_hash = parameters // (config.num_hashes * config.hash_dim)
    torch.jit.script(ServedIdEmbedding(trained).eval()).save(str(folder / "id_embedding.pt"))
    tables = IdTables.cut(config.num_hashes * trained.rows_per_hash, config.hash_dim, SHARDS)
    tables.save(folder / "id_tables")
    for shard in range(tables.num_shards):
        path = tables.path_of(folder / "id_tables", shard)
        with path.open("wb") as file:
            file.truncate(tables.rows_of(shard) * tables.row_bytes)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 2**62, (requests, ROWS))
    rows = hash_rows(torch.from_numpy(ids).reshape(-1), config.num_hashes, trained.rows_per_hash)  # [n, k]
    written, places = np.unique(rows.numpy(), return_inverse=True)  # two items may share a row
    values = (0.1 * rng.standard_normal((len(written), config.hash_dim))).astype(np.float16)
    _write_rows(folder / "id_tables", tables, written, values)
    with torch.inference_mode():
        expected = trained.mlp(torch.from_numpy(values[places].astype(np.float32)).flatten(1))
    np.save(folder / "ids.npy", ids)
    np.save(folder / "expected.npy", expected.reshape(requests, ROWS, -1).numpy())


def _write_rows(folder: Path, tables: IdTables, rows: np.ndarray, values: np.ndarray) -> None:
    files = [os.open(tables.path_of(folder, shard), os.O_WRONLY) for shard in range(tables.num_shards)]
    for row, value in zip(rows.tolist(), encode_rows(values, "fp16"), strict=True):
        shard, place = divmod(row, tables.rows_per_shard)
        os.pwrite(files[shard], value.tobytes(), place * tables.row_bytes)
    for file in files:
        os.fsync(file)
        os.close(file)


def open_big_table(folder: Path) -> Task:
    """Embeds request after request, on one thread, warm."""
    torch.set_num_threads(1)
    embedder, ids = IdEmbedder.load(folder), np.load(folder / "ids.npy")
    for one in ids:
        embedder.embed(one)
    return lambda i: embedder.embed(ids[i % len(ids)])


def cold_and_warm(folder: Path) -> dict[str, Any]:
    """Each request twice in a fresh process, first with no page of the tables in memory; and what is resident after."""
    torch.set_num_threads(1)
    ids, expected = np.load(folder / "ids.npy"), np.load(folder / "expected.npy")
    files = sorted((folder / "id_tables").glob("shard-*"))
    _forget(files)
    embedder = IdEmbedder.load(folder)
    _forget(files)
    at_first = mapped_bytes("self", folder)
    # Ids that are not counted: what torch compiles the first times, and pages that nobody wrote.
    for _ in range(3):
        embedder.embed(-ids[0])
    cold, warm, errors = [], [], []
    for taken in (cold, warm):
        for one, right in zip(ids, expected, strict=True):
            started = time.perf_counter()
            found = embedder.embed(one)
            taken.append(1000 * (time.perf_counter() - started))
            errors.append(float(np.abs(found - right).max()))
    return {
        "apparent_bytes": sum(path.stat().st_size for path in files),
        "disk_bytes": sum(512 * path.stat().st_blocks for path in files),
        "resident_bytes_opened": at_first,
        "resident_bytes": mapped_bytes("self", folder),
        "rows_read": 2 * ROWS * (len(ids) + 1),
        "cold_ms": np.percentile(cold, [50, 99]).tolist(),
        "warm_ms": np.percentile(warm, [50, 99]).tolist(),
        "largest_error": max(errors),
    }


def _forget(files: list[Path]) -> None:
    """Ask the kernel to drop what it has of these files in memory."""
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
