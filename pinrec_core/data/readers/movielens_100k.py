"""MovieLens-100k as it lies in the `recbole` wheel: downloaded by pip, never committed.

5 stars are `loved`, 4 `liked`, 3 `watched`, fewer are dropped; one surface, `home`. An item's text is its title, year
and genres. Harper and Konstan, The MovieLens Datasets, 2015; GroupLens: for non-commercial use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from pinrec_core.data.readers.ratings import DROPPED, OUTCOMES, count_outcomes, outcome_of_stars
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.release import sha256_of
from pinrec_core.schema import ITEM_TYPE_NAMES, ItemType

WHEEL = "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
SURFACE = "home"
_MEMBERS = ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item")


def default_cache() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/pinrec`, else `~/.cache/pinrec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pinrec"


def download_wheel(cache: Path) -> Path:
    """The wheel in `cache`, fetched by `pip download --no-deps` if it is not there.

    Raises Unavailable if pip cannot fetch it, InvalidData if it is not the wheel that this reader knows.
    """
    path = cache / WHEEL
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        name, version = WHEEL.split("-")[:2]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--dest", str(cache), f"{name}=={version}"], capture_output=True, text=True, check=False
        )
        if done.returncode or not path.exists():
            words = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
            raise Unavailable(f"pip could not download {name}=={version}: {words}")
    if sha256_of(path) != WHEEL_SHA256:
        raise InvalidData(
            f"{WHEEL} in {cache} does not have the sha256 {WHEEL_SHA256[:12]}...: remove it and try again"
        )
    return path


def convert_wheel(wheel: Path, folder: Path) -> ReadSummary:
    """Write `folder` from a downloaded wheel. Raises InvalidData if the wheel lacks the two files."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            interactions, items = (archive.read(member) for member in _MEMBERS)
    except (zipfile.BadZipFile, KeyError) as error:
        raise InvalidData(f"{wheel.name} does not hold {' and '.join(_MEMBERS)}") from error
    return convert(interactions, items, folder)


def convert(interactions: bytes, items: bytes, folder: Path) -> ReadSummary:
    """Write `folder` from the bytes of `ml-100k.inter` and `ml-100k.item` (tab-separated, typed headers)."""
    ratings = _read(interactions, {"user_id": pa.int64(), "item_id": pa.int64(), "rating": pa.float64(),
                                   "timestamp": pa.float64()})  # fmt: skip
    movies = _read(items, {"item_id": pa.int64(), "movie_title": pa.string(), "release_year": pa.string(),
                           "class": pa.string()})  # fmt: skip
    ratings = ratings.sort_by([("user_id", "ascending"), ("timestamp", "ascending"), ("item_id", "ascending")])
    outcome = outcome_of_stars(ratings["rating"].to_numpy())
    kept = outcome != DROPPED
    with FolderWriter(folder, DatasetFacts(name="movielens-100k", outcomes=OUTCOMES)) as writer:
        _write_movies(writer, movies)
        writer.events(
            user_id=ratings["user_id"].to_numpy()[kept],
            item_id=ratings["item_id"].to_numpy()[kept],
            item_type=NameColumn(np.full(kept.sum(), ItemType.PIN), ITEM_TYPE_NAMES),
            action=NameColumn(outcome[kept], OUTCOMES),
            surface=NameColumn(np.zeros(kept.sum()), [SURFACE]),
            timestamp_ms=(ratings["timestamp"].to_numpy()[kept] * 1_000).astype(np.int64),
        )
    return ReadSummary(
        users=len(np.unique(ratings["user_id"].to_numpy()[kept])),
        items=len(movies),
        events=count_outcomes(outcome),
        left_out={"fewer than 3 stars": int((~kept).sum())},
    )


def _read(content: bytes, types: dict[str, pa.DataType]) -> pa.Table:
    """A RecBole atomic file: header `name:type`, tabs, no quoting."""
    parse = pa_csv.ParseOptions(delimiter="\t", quote_char=False)
    header = content.split(b"\n", 1)[0].decode().rstrip("\r").split("\t")
    names = [name.split(":")[0] for name in header]
    missing = [name for name in types if name not in names]
    if missing:
        raise InvalidData(f"MovieLens-100k file lacks columns {missing}; it has {names}")
    read = pa_csv.ReadOptions(column_names=names, skip_rows=1)
    convert = pa_csv.ConvertOptions(column_types=types, include_columns=list(types))
    return pa_csv.read_csv(pa.BufferReader(content), read, parse, convert)


def _write_movies(writer: FolderWriter, movies: pa.Table) -> None:
    columns = (movies[name].to_pylist() for name in ("movie_title", "release_year", "class"))
    rows = [tuple(value or "" for value in row) for row in zip(*columns, strict=True)]
    writer.items(
        item_id=movies["item_id"].to_numpy(),
        item_type=NameColumn(np.full(len(movies), ItemType.PIN), ITEM_TYPE_NAMES),
        text=pa.array([" ".join(filter(None, row)) for row in rows], pa.string()),
        title=pa.array([f"{title} ({year})" if year else title for title, year, _ in rows], pa.string()),
    )
