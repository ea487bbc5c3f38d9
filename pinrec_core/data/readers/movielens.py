"""MovieLens folders as GroupLens ships them: 1M and 10M in .dat files, 20M, 25M and latest in .csv, plain or gzipped.

    ratings.csv, movies.csv, tags.csv    header, commas, quotes
    ratings.dat, movies.dat, tags.dat    no header, `::` between fields; 1M has no tags, and Latin-1 titles

Ratings of 4.5 and 5 stars are `loved`, 3.5 and 4 `liked`, 2.5 and 3 `watched`, fewer are dropped. A typed tag becomes a
search query on the surface `search`. It says in the user's words what the movie is, so it stands for the search that
found it: it is placed just before that user's rating of the movie (1 ms a tag), and the rating moves to the surface
`search`; every other rating is on `home`. Tags on movies whose rating is missing or dropped stay queries at the time
when they were typed. Movies' text is title and genres, never tags: a movie must not carry the queries that find it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pinrec_core.data.readers.pins import refuse_empty
from pinrec_core.data.readers.ratings import DROPPED, OUTCOMES, count_outcomes, outcome_of_stars
from pinrec_core.data.readers.sorting import EventSorter
from pinrec_core.data.readers.streams import csv_batches, find, lines, need
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.event_log.events import repeats
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType
from pinrec_core.text_encoder import normalize_text, query_item_id

SURFACES = ("home", "search")
_ACTIONS = (*OUTCOMES, SEARCH_ACTION)
_FEWEST_STARS, _MOST_STARS = 0.5, 5.0
_RATING_TYPES = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
_MOVIE_TYPES = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
_TAG_TYPES = {"userId": pa.int64(), "movieId": pa.int64(), "tag": pa.string(), "timestamp": pa.int64()}
_NO_GENRES = "(no genres listed)"
_MAX_TAGS_BEFORE_RATING = 999
"""Ratings are a second apart at best, so that more queries than this would reach the rating before."""


def is_wanted(name: str) -> bool:
    """Whether a file of the publisher's archive is read."""
    return name in {f"{table}.{kind}" for table in ("ratings", "movies", "tags") for kind in ("csv", "dat")}


def convert(source: Path, folder: Path, name: str | None = None, progress: bool = False) -> ReadSummary:
    """Write `folder` from a GroupLens folder; tags may be missing. `name` of the data set: None = the folder's.

    Ratings are sorted on disk and written some users at a time. Raises InvalidData naming file and column.
    """
    movies = _movies(need(source, "movies.csv", "movies.dat"))
    ratings, tags = need(source, "ratings.csv", "ratings.dat"), find(source, "tags.csv", "tags.dat")
    facts = DatasetFacts(
        name=name or source.resolve().name, outcomes=OUTCOMES, search_surfaces=("search",) if tags else ()
    )
    counts = _Counts()
    with FolderWriter(folder, facts) as writer, EventSorter(folder) as sorter:
        _write_movies(writer, movies)
        for batch in _batches(ratings, _RATING_TYPES, progress):
            _refuse_stars(ratings, batch["rating"].to_numpy())
            sorter.add(counts.kept(batch))
        for batch in _batches(tags, _TAG_TYPES, progress) if tags else ():
            sorter.add(_row_table(batch, pa.nulls(len(batch), pa.int32()), batch["tag"].fill_null("")))
        for table in sorter.tables():
            writer.events(**counts.columns(table))
        return refuse_empty(source, counts.summary(len(movies)))


def _refuse_stars(path: Path, stars: NDArray[np.float64]) -> None:
    wrong = stars[~((stars >= _FEWEST_STARS) & (stars <= _MOST_STARS))]  # NaN too
    if len(wrong):
        raise InvalidData(
            f"{path.name}, column rating: has value {wrong[0]:g}; allowed: {_FEWEST_STARS:g} to {_MOST_STARS:g}"
        )


def _row_table(batch: pa.RecordBatch, outcome: pa.Array, tag: pa.Array) -> pa.Table:
    """Ratings (their tag is null) and tags (their outcome is null) in one schema, to be sorted together."""
    columns = {"user_id": batch["userId"], "timestamp_ms": batch["timestamp"], "item_id": batch["movieId"]}
    return pa.table({**columns, "outcome": outcome, "tag": tag})


class _Counts:
    """What was met on the way."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.users = self.queries = self.few_stars = self.wordless = self.repeated = 0

    def kept(self, batch: pa.RecordBatch) -> pa.Table:
        """The ratings that are an engagement; the others are counted."""
        outcome = outcome_of_stars(batch["rating"].to_numpy())
        kept = outcome != DROPPED
        self.few_stars += int((~kept).sum())
        for name, count in count_outcomes(outcome).items():
            self.outcomes[name] += count
        rows = batch.filter(pa.array(kept))
        return _row_table(rows, pa.array(outcome[kept], pa.int32()), pa.nulls(len(rows), pa.string()))

    def columns(self, table: pa.Table) -> dict[str, NDArray[np.int64] | NameColumn | pa.Array]:
        """Columns of the events of some users, whose ratings and tags are all in `table` (times in seconds)."""
        is_tag = table["tag"].is_valid()
        rated, tags = table.filter(pc.invert(is_tag)), table.filter(is_tag)
        users, items, times = (rated[name].to_numpy() for name in ("user_id", "item_id", "timestamp_ms"))
        log = _Log(users, items, times * 1_000, rated["outcome"].to_numpy().astype(np.int32))
        queries = _Queries(tags, log)
        self.users += len(np.unique(np.concatenate([users, queries.users])))
        self.queries += len(queries.users)
        self.wordless += queries.wordless
        self.repeated += queries.repeated
        return _columns(log, queries)

    def summary(self, num_movies: int) -> ReadSummary:
        """In words."""
        return ReadSummary(
            users=self.users,
            items=num_movies,
            events={**self.outcomes, SEARCH_ACTION: self.queries},
            left_out={
                "fewer than 2.5 stars": self.few_stars,
                "tags without letters": self.wordless,
                "tags typed twice for a movie": self.repeated,
            },
        )


class _Log:
    """The ratings kept, [E]; `searched` marks those that a tag found."""

    def __init__(
        self,
        users: NDArray[np.int64],
        items: NDArray[np.int64],
        times: NDArray[np.int64],
        outcome: NDArray[np.int32],
    ) -> None:
        self.users, self.items, self.times, self.outcome = users, items, times, outcome
        self.searched = np.zeros(len(users), dtype=bool)

    def find(self, users: NDArray[np.int64], items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each (user, movie), -1 where they have no rating that was kept: int64 [n]."""
        if not len(self.users):
            return np.full(len(users), -1)
        width = int(max(self.items.max(), items.max(initial=0))) + 1
        keys = self.users * width + self.items
        order = np.argsort(keys)
        wanted = users * width + items
        at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        return np.where(keys[order][at] == wanted, order[at], -1)


class _Queries:
    """Tags as search queries, [Q], placed in time; marks the ratings that they found in `log`."""

    def __init__(self, tags: pa.Table, log: _Log) -> None:
        texts = [tag or "" for tag in tags["tag"].to_pylist()]
        ids = np.array([query_item_id(text) for text in texts], dtype=np.int64)
        columns = [tags[name].to_numpy().astype(np.int64) for name in ("user_id", "item_id", "timestamp_ms")]
        worded = np.array([bool(normalize_text(text)) for text in texts], dtype=bool)
        new = ~repeats([*columns[:2], ids])
        self.wordless, self.repeated = int((~worded).sum()), int((worded & ~new).sum())
        users, items, typed = (column[worded & new] for column in columns)
        self.users, self.ids = users, ids[worded & new]
        self.texts = [texts[row] for row in np.flatnonzero(worded & new)]
        rated = log.find(users, items)
        before = np.minimum(_countdown(rated, typed), _MAX_TAGS_BEFORE_RATING)
        times = log.times[rated] if len(log.times) else typed
        self.times = np.where(rated >= 0, times - before, typed * 1_000)
        log.searched[rated[rated >= 0]] = True


def _countdown(group: NDArray[np.int64], typed: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each tag from the end of its group, the last typed being 1: int64 [n]."""
    order = np.lexsort((typed, group))
    ends = np.searchsorted(group[order], group[order], side="right")
    place = np.empty(len(group), dtype=np.int64)
    place[order] = ends - np.arange(len(group))
    return place


def _columns(log: _Log, queries: _Queries) -> dict[str, NDArray[np.int64] | NameColumn | pa.Array]:
    """Ratings and queries together, by user and time."""
    times = np.concatenate([log.times, queries.times])
    users = np.concatenate([log.users, queries.users])
    order = np.lexsort((times, users))
    is_query = np.arange(len(users)) >= len(log.users)
    action = np.concatenate([log.outcome, np.full(len(queries.users), len(OUTCOMES), dtype=np.int32)])
    surface = is_query | np.concatenate([log.searched, np.zeros(len(queries.users), dtype=bool)])
    texts = sorted(set(queries.texts))
    places = {text: place for place, text in enumerate(texts)}
    text = np.full(len(users), -1)
    text[is_query] = [places[query] for query in queries.texts]
    return {
        "user_id": users[order],
        "item_id": np.concatenate([log.items, queries.ids])[order],
        "item_type": NameColumn(np.where(is_query, ItemType.SEARCH_QUERY, ItemType.PIN)[order], ITEM_TYPE_NAMES),
        "action": NameColumn(action[order], _ACTIONS),
        "surface": NameColumn(surface[order], SURFACES),
        "timestamp_ms": times[order],
        "text": NameColumn(text[order], texts),
    }


def _batches(path: Path, types: dict[str, pa.DataType], progress: bool) -> Iterator[pa.RecordBatch]:
    """Ratings or tags, some rows at a time. Raises InvalidData naming file and column or line."""
    if ".dat" not in path.suffixes:
        yield from csv_batches(path, types, progress)
    elif "tag" in types:  # a tag may hold a colon
        rows = [_split(line, path, number) for number, line in enumerate(lines(path, progress), start=1)]
        columns = zip(*((*row[:2], *row[2].rsplit("::", 1)) for row in rows), strict=True)
        yield _typed(path, dict(zip(types, columns, strict=True)), types)
    else:
        names = [name for pair in ((column, f"_{column}") for column in types) for name in pair][:-1]  # a:: = a, _, ...
        yield from csv_batches(path, types, progress, names=names, delimiter=":")


def _movies(path: Path) -> pa.Table:
    if ".dat" not in path.suffixes:
        batches = list(csv_batches(path, _MOVIE_TYPES))
        return pa.Table.from_batches(batches, pa.schema(list(_MOVIE_TYPES.items())))
    rows = [_split(line, path, number) for number, line in enumerate(lines(path), start=1)]
    columns = zip(*((row[0], *"::".join(row[1:]).rsplit("::", 1)) for row in rows), strict=True)
    return pa.Table.from_batches([_typed(path, dict(zip(_MOVIE_TYPES, columns, strict=True)), _MOVIE_TYPES)])


def _split(line: str, path: Path, number: int) -> list[str]:
    """The first two fields of a .dat line, and the rest. Raises InvalidData if there are fewer than three."""
    fields = line.split("::", 2)
    if len(fields) < 3:
        raise InvalidData(f"{path.name}, line {number}: has {len(fields)} fields, must have at least 3 between ::")
    return fields


def _typed(path: Path, columns: dict[str, tuple[str, ...]], types: dict[str, pa.DataType]) -> pa.RecordBatch:
    """Text columns cast to `types`. Raises InvalidData."""
    try:
        arrays = [pa.array(columns[name], pa.string()).cast(kind) for name, kind in types.items()]
    except pa.ArrowException as error:
        raise InvalidData(f"{path.name}: {str(error).splitlines()[0]}; wanted columns: {', '.join(types)}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(list(types.items())))


def _write_movies(writer: FolderWriter, movies: pa.Table) -> None:
    titles = [title or "" for title in movies["title"].to_pylist()]
    genres = ["" if text in (None, _NO_GENRES) else text.replace("|", " ") for text in movies["genres"].to_pylist()]
    writer.items(
        item_id=movies["movieId"].to_numpy(),
        item_type=NameColumn(np.full(len(movies), ItemType.PIN), ITEM_TYPE_NAMES),
        text=pa.array([f"{title} {genre}".strip() for title, genre in zip(titles, genres, strict=True)], pa.string()),
        title=pa.array(titles, pa.string()),
    )
