"""Files of a source read in bounded memory: CSV and Parquet a batch at a time, JSON a line at a time."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from tqdm import tqdm

from pinrec_core.errors import InvalidData

_BLOCK = 1 << 24
"""Bytes of a CSV file that are parsed at a time."""


def find(source: Path, *names: str) -> Path | None:
    """The first of `names`, plain or `.gz`, in `source` or its `data/`; None if there is none."""
    places = (folder / f"{name}{gz}" for name in names for folder in (source, source / "data") for gz in ("", ".gz"))
    return next((path for path in places if path.is_file()), None)


def need(source: Path, *names: str) -> Path:
    """As `find`. Raises InvalidData if there is none."""
    path = find(source, *names)
    if path is None:
        raise InvalidData(f"{source} does not hold {' or '.join(names)} (plain or .gz)")
    return path


def csv_batches(
    path: Path,
    types: Mapping[str, pa.DataType],
    progress: bool = False,
    names: Sequence[str] | None = None,
    delimiter: str = ",",
) -> Iterator[pa.RecordBatch]:
    """Batches of the columns `types` of a CSV file, plain or gzipped; `names`: its columns where it has no header row.

    A file of `names` knows no quotes. Raises InvalidData naming file and column, also where a number is missing.
    """
    read = pa_csv.ReadOptions(block_size=_BLOCK, column_names=names)
    parse = pa_csv.ParseOptions(delimiter=delimiter, quote_char='"' if names is None else False)
    convert = pa_csv.ConvertOptions(column_types=dict(types), include_columns=list(types))
    try:
        with (
            pa_csv.open_csv(path, read, parse, convert) as reader,
            tqdm(desc=path.name, unit="row", unit_scale=True, disable=not progress) as bar,
        ):
            for batch in reader:
                _refuse_missing(path, batch)
                yield batch
                bar.update(len(batch))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise InvalidData(f"{path.name}: {str(error).splitlines()[0]}; wanted columns: {', '.join(types)}") from error


def _refuse_missing(path: Path, batch: pa.RecordBatch) -> None:
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if column.null_count and not pa.types.is_string(field.type):
            raise InvalidData(
                f"{path.name}, column {field.name}: {column.null_count} of {len(batch)} rows read together have no "
                "value; must be a number"
            )


def parquet_table(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """The columns `types` of a Parquet file, cast to them. Raises InvalidData naming file and column."""
    if not path.is_file():
        raise InvalidData(f"{path.parent} does not hold {path.name}")
    try:
        missing = [name for name in types if name not in pq.read_schema(path).names]
        if missing:
            raise InvalidData(f"{path.name} lacks columns {missing}")
        return pq.read_table(path, columns=list(types)).cast(pa.schema(list(types.items())))
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{path.name}: {str(error).splitlines()[0]}") from error


def lines(path: Path, progress: bool = False) -> Iterator[str]:
    """Lines of a text file, plain or gzipped; UTF-8, else Latin-1. Raises InvalidData if it is damaged."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with (
            opener(path, "rb") as file,
            tqdm(desc=path.name, unit="line", unit_scale=True, disable=not progress) as bar,
        ):
            for line in file:
                bar.update()
                yield _text(line)
    except (OSError, EOFError) as error:
        raise InvalidData(f"{path.name} cannot be read: {error}") from error


def _text(line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip("\r\n")
