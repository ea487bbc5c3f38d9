"""What each further process adds to a host's memory when it opens the same release: counted by proportional set size.

A page that n processes map counts 1/n in each, so the sum over processes counts it once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.contenders import Contender, Task, running
from pinrec_core.release import ItemTable

NUM_ROWS = 500_000
"""Of the tables that are shared here: 64 MB of ID rows, 68 MB of content rows."""
_IDS_A_CALL = 256
_TOUCHES = 12
"""Rows read for each page there is: all but one page in e^12 are read."""
_PAGE = 4_096


def added_bytes(make: Callable[..., Task], args: tuple[Any, ...], processes: int) -> list[int]:
    """Bytes that the first, second, ... process adds to the sum of all when its task runs; all have started before."""
    contenders = [Contender(f"process {number + 1}", make, args) for number in range(processes)]
    added = []
    with running(contenders) as started:
        pids = [one.pid for one in started]
        before = pss_bytes(pids)
        for one in started:
            one.answers(0, 1)
            after = pss_bytes(pids)
            added.append(after - before)
            before = after
    return added


def pss_bytes(pids: list[int]) -> int:
    """Sum of the proportional set sizes."""
    return sum(1024 * _kilobytes(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") for pid in pids)


def mapped_bytes(pid: int | str, folder: Path) -> int:
    """Bytes of files under a folder that are in a process's memory now."""
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # the head of a mapping: its addresses, and the file last
            inside = len(rest) == 5 and Path(rest[-1]).is_relative_to(folder.resolve())
        elif inside and first == "Rss:":
            total += 1024 * int(rest[0])
    return total


def make_id_tables(folder: Path) -> int:
    """An untrained ID embedding as a release has it; bytes of its tables."""
    from pinrec_core.config import ModelConfig
    from pinrec_core.model.id_embedding import HashIdEmbedding, export_id_embedding

    folder.mkdir(parents=True)
    config = ModelConfig(num_hashes=2, hash_rows=NUM_ROWS // 2, hash_dim=64, id_dim=64)
    export_id_embedding(HashIdEmbedding(config), folder, num_shards=4)
    return sum(path.stat().st_size for path in (folder / "id_tables").glob("shard-*"))


def make_content(folder: Path) -> int:
    """An item table as a release has it; bytes of its content rows and their scales."""
    content, scale = np.full((2 * NUM_ROWS, 64), 7, np.int8), np.ones(2 * NUM_ROWS, np.float32)
    ItemTable(np.arange(len(scale)), np.zeros(len(scale), np.uint8), content, scale).save(folder / "items")
    return content.nbytes + scale.nbytes


def read_id_tables(folder: Path) -> Task:
    """Opens what `make_id_tables` left and embeds until every page of the tables was read."""
    import torch

    from pinrec_core.model.id_embedding import IdEmbedder

    torch.set_num_threads(1)
    for _ in range(3):  # what torch itself loads and compiles the first times
        IdEmbedder.load(folder).embed(np.arange(_IDS_A_CALL))
    num_pages = 128 * NUM_ROWS // _PAGE
    kept = []

    def read(_: int) -> None:
        embedder = IdEmbedder.load(folder)
        rng = np.random.default_rng(0)
        for _ in range(-(-_TOUCHES * num_pages // _IDS_A_CALL)):
            embedder.embed(rng.integers(0, 2**62, _IDS_A_CALL))
        kept.append(embedder)

    return read


def read_content(folder: Path) -> Task:
    """Opens what `make_content` left and gathers every content row, as the signal service does."""
    kept = []

    def read(_: int) -> None:
        items = ItemTable.open(folder / "items")
        for start in range(0, len(items.ids), _IDS_A_CALL):
            rows = np.arange(start, min(start + _IDS_A_CALL, len(items.ids)))
            assert items.content[rows].nbytes
            assert items.scale[rows].nbytes
        kept.append(items)

    return read


def _kilobytes(path: Path, field: str) -> int:
    [line] = [line for line in path.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1])
