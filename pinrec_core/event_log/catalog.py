"""The items of a folder: read, checked and repaired, with their embeddings already quantized batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from pinrec_core.codec import quantize
from pinrec_core.event_log.parquet import (
    ITEM_COLUMNS,
    OPTIONAL_ITEM_COLUMNS,
    UNREADABLE,
    NameCodes,
    check_schemas,
    columns_of,
    count_rows,
    find_files,
    integers,
    read_batches,
)
from pinrec_core.event_log.problems import Findings
from pinrec_core.schema import ITEM_TYPE_NAMES

ITEMS = "items.parquet"
_READ_IF_PRESENT = {name: kind for name, kind in OPTIONAL_ITEM_COLUMNS.items() if name != "url"}


@dataclass
class Catalog:
    """Rows of items.parquet [N], by ascending item id."""

    ids: NDArray[np.int64]
    types: NDArray[np.uint8]
    texts: list[str]
    """Empty strings where the item has none."""
    titles: dict[int, str]
    """`title` of each item, else its `text`; items with neither are left out."""
    content: NDArray[np.int8] | None
    """int8 [N, D_sem], L2-normalized before quantization; None if no item brings an embedding."""
    scale: NDArray[np.float32] | None
    embedded: NDArray[np.bool_]
    """Which items bring an embedding."""


def read_items(folder: Path, findings: Findings, progress: bool = False) -> Catalog | None:
    """Read, check and repair the items of `folder`; None if they cannot be used.

    Repairs, each counted: a repeated item id keeps its first row; an item without embedding and text has zero content.
    """
    files = find_files(folder, "items", findings)
    if not files or not check_schemas(folder, files, ITEM_COLUMNS, OPTIONAL_ITEM_COLUMNS, findings):
        return None
    name = ITEMS if files[0].name == ITEMS else "items/"
    if not count_rows(files):
        findings.file(name, "has no rows")
        return None
    try:
        return _Reader(files, folder / "items", name, findings).read(progress)
    except UNREADABLE as error:
        findings.file(name, f"cannot be read: {str(error).splitlines()[0]}")
        return None


class _Reader:
    """Turns record batches into the catalog's columns."""

    def __init__(self, files: list[Path], base: Path, name: str, findings: Findings) -> None:
        self._files, self._base, self._name, self._findings = files, base, name, findings
        available = columns_of(files)
        self._columns = {**ITEM_COLUMNS, **{c: k for c, k in _READ_IF_PRESENT.items() if c in available}}
        self._types = NameCodes(ITEM_TYPE_NAMES)
        self._ids: list[NDArray[np.int64]] = []
        self._type_codes: list[NDArray[np.int32]] = []
        self._texts: list[str] = []
        self._titles: list[str] = []
        self._content: list[NDArray[np.int8]] = []
        self._scale: list[NDArray[np.float32]] = []
        self._embedded: list[NDArray[np.bool_]] = []
        self._width = 0
        self._bad: dict[str, list[NDArray[np.int64]]] = {}

    def read(self, progress: bool) -> Catalog | None:
        start, total = 0, count_rows(self._files)
        bar = tqdm(total=total, desc="reading items", unit="row", unit_scale=True, disable=not progress)
        for batch in read_batches(self._files, self._base, self._columns):
            ids, nulls = integers(batch.column("item_id"))
            self._note("item_id", nulls + start)
            self._ids.append(ids)
            codes = self._types.encode(batch.column("item_type"))
            self._note("item_type", start + np.flatnonzero((codes < 0) | (codes >= len(ITEM_TYPE_NAMES))))
            self._type_codes.append(codes)
            self._texts += _strings(batch, "text")
            self._titles += _strings(batch, "title")
            if "embedding" in self._columns:
                self._read_embeddings(batch.column("embedding"), start)
            start += len(batch)
            bar.update(len(batch))
        bar.close()
        self._report()
        return None if self._findings.has_error else self._catalog()

    def _note(self, kind: str, rows: NDArray[np.int64]) -> None:
        if len(rows):
            self._bad.setdefault(kind, []).append(rows)

    def _read_embeddings(self, column: pa.ListArray, start: int) -> None:
        """Quantize a batch of list<float>; null or empty lists are items without an embedding."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets) * column.is_valid().to_numpy(zero_copy_only=False)
        present = lengths > 0
        self._embedded.append(present)
        if not self._width and present.any():
            self._width = int(lengths[present][0])
        self._note("width", start + np.flatnonzero(present & (lengths != self._width)))
        rows = np.zeros((len(column), self._width), dtype=np.float32)
        fits = np.flatnonzero(present & (lengths == self._width))
        values = column.values.to_numpy(zero_copy_only=False)
        rows[fits] = values[offsets[fits, None] + np.arange(self._width)]
        infinite = ~np.isfinite(rows).all(axis=1)
        self._note("finite", start + np.flatnonzero(infinite))
        rows[infinite] = 0.0
        codes, scale = quantize(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12)))
        self._content.append(codes)
        self._scale.append(scale)

    def _report(self) -> None:
        ids = np.concatenate(self._ids)
        allowed = ", ".join(ITEM_TYPE_NAMES)
        sentences = {
            "item_id": ("item_id", "is null"),
            "item_type": ("item_type", f"is null or unknown; allowed: {allowed}"),
            "width": ("embedding", f"has another length than the first row's {self._width}"),
            "finite": ("embedding", "holds NaN or infinity"),
        }
        for kind, (column, what) in sentences.items():
            if kind in self._bad:
                bad = np.concatenate(self._bad[kind])
                self._findings.rows((self._name, column), what, bad, lambda row: f"item_id {ids[row]}")
        first = np.zeros(len(ids), dtype=bool)
        first[np.unique(ids, return_index=True)[1]] = True
        self._findings.rows(
            (self._name, "item_id"), "repeats an earlier row's", ~first, lambda row: f"item_id {ids[row]}",
            repair="the first row is kept",
        )  # fmt: skip
        if not {"embedding", "text"} & set(self._columns):
            self._findings.file(
                self._name,
                "has neither a column embedding nor text",
                repair="content is zero, only ids tell items apart",
            )
            return
        embedded = np.concatenate(self._embedded) if self._embedded else np.zeros(len(ids), dtype=bool)
        bare = ~embedded & (np.array([not text for text in self._texts]))
        self._findings.rows(
            (self._name, ""), "has neither an embedding nor text", bare, lambda row: f"item_id {ids[row]}",
            repair="its content is zero, only its id tells it apart",
        )  # fmt: skip

    def _catalog(self) -> Catalog:
        ids, kept = np.unique(np.concatenate(self._ids), return_index=True)
        types = np.concatenate(self._type_codes)[kept].astype(np.uint8)
        texts = [self._texts[row] for row in kept]
        titles = {
            int(item): self._titles[row] or self._texts[row]
            for item, row in zip(ids, kept, strict=True)
            if self._titles[row] or self._texts[row]
        }
        has_any = bool(self._width)
        return Catalog(
            ids=ids,
            types=types,
            texts=texts,
            titles=titles,
            content=np.concatenate([_widened(part, self._width) for part in self._content])[kept] if has_any else None,
            scale=np.concatenate(self._scale)[kept] if has_any else None,
            embedded=np.concatenate(self._embedded)[kept] if has_any else np.zeros(len(ids), dtype=bool),
        )


def _strings(batch: pa.RecordBatch, column: str) -> list[str]:
    if column not in batch.schema.names:
        return [""] * len(batch)
    return [text or "" for text in batch.column(column).to_pylist()]


def _widened(part: NDArray[np.int8], width: int) -> NDArray[np.int8]:
    """Batches read before the first embedding have no columns yet."""
    return part if part.shape[1] else np.zeros((len(part), width), dtype=np.int8)
