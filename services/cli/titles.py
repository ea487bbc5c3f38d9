"""Titles of items, for people who look at candidates. No stage reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pinrec_core.errors import InvalidData


def release_titles(release_dir: Path, item_ids: Sequence[int]) -> dict[int, str]:
    """Titles that a release brought along; empty if it has none."""
    folder = release_dir / "display"
    return read_titles(folder, item_ids) if (folder / "items.parquet").exists() else {}


def read_titles(folder: Path, item_ids: Sequence[int]) -> dict[int, str]:
    """item_id -> title (else text) of the wanted ids, from `folder/items.parquet`.

    `folder`: a data folder, or a release's `display`. Raises InvalidData if there is no such file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = folder / "items.parquet"
    if not path.exists():
        raise InvalidData(f"items.parquet is missing in {str(folder)!r}: no titles to show")
    column = next((name for name in ("title", "text") if name in pq.read_schema(path).names), None)
    if column is None:
        return {}
    table = pq.read_table(path, columns=["item_id", column])
    table = table.filter(pc.is_in(table["item_id"], value_set=pa.array(item_ids, pa.int64())))
    rows = zip(table["item_id"].to_pylist(), table[column].to_pylist(), strict=True)
    return {item_id: title for item_id, title in rows if title}
