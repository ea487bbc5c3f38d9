"""MovieLens folders as GroupLens ships them: ratings.csv, movies.csv, tags.csv, plain or gzipped.

Ratings of 4.5 and 5 stars are `loved`, 3.5 and 4 `liked`, 2.5 and 3 `watched`, fewer are dropped. A typed tag becomes a
search query on the surface `search`. It says in the user's words what the movie is, so it stands for the search that
found it: it is placed just before that user's rating of the movie (1 ms a tag), and the rating moves to the surface
`search`; every other rating is on `home`. Tags on movies whose rating is missing or dropped stay queries at the time
when they were typed. Movies' text is title and genres, never tags: a movie must not carry the queries that find it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from pinrec_core.data.readers.ratings import DROPPED, OUTCOMES, count_outcomes, outcome_of_stars
from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.event_log.events import repeats
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType
from pinrec_core.text_encoder import normalize_text, query_item_id

SURFACES = ("home", "search")
_ACTIONS = (*OUTCOMES, SEARCH_ACTION)
_RATING_TYPES = {"userId": pa.int64(), "movieId": pa.int64(), "rating": pa.float64(), "timestamp": pa.int64()}
_MOVIE_TYPES = {"movieId": pa.int64(), "title": pa.string(), "genres": pa.string()}
_TAG_TYPES = {"userId": pa.int64(), "movieId": pa.int64(), "tag": pa.string(), "timestamp": pa.int64()}
_NO_GENRES = "(no genres listed)"
_MAX_TAGS_BEFORE_RATING = 999
"""Ratings are a second apart at best, so that more queries than this would reach the rating before."""


def convert(source: Path, folder: Path) -> ReadSummary:
    """Write `folder` from a GroupLens folder; tags.csv may be missing. Raises InvalidData naming file and column."""
    movies = _read(source, "movies", _MOVIE_TYPES)
    ratings = _read(source, "ratings", _RATING_TYPES)
    has_tags = _find(source, "tags") is not None
    tags = _read(source, "tags", _TAG_TYPES) if has_tags else pa.table({name: [] for name in _TAG_TYPES})
    outcome = outcome_of_stars(ratings["rating"].to_numpy())
    kept = outcome != DROPPED
    users, items, times = (ratings[name].to_numpy()[kept] for name in ("userId", "movieId", "timestamp"))
    log = _Log(users, items, times * 1_000, outcome[kept])
    queries = _Queries(tags, log)
    facts = DatasetFacts(name=source.resolve().name, outcomes=OUTCOMES, search_surfaces=("search",) if has_tags else ())
    with FolderWriter(folder, facts) as writer:
        _write_movies(writer, movies)
        writer.events(**_columns(log, queries))
    return ReadSummary(
        users=len(np.unique(np.concatenate([users, queries.users]))),
        items=len(movies),
        events={**count_outcomes(outcome), SEARCH_ACTION: len(queries.users)},
        left_out={
            "fewer than 2.5 stars": int((~kept).sum()),
            "tags without letters": queries.wordless,
            "tags typed twice for a movie": queries.repeated,
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
        columns = [tags[name].to_numpy().astype(np.int64) for name in ("userId", "movieId", "timestamp")]
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


def _find(source: Path, name: str) -> Path | None:
    return next((path for suffix in (".csv", ".csv.gz") if (path := source / f"{name}{suffix}").is_file()), None)


def _read(source: Path, name: str, types: dict[str, pa.DataType]) -> pa.Table:
    path = _find(source, name)
    if path is None:
        raise InvalidData(f"{source} holds neither {name}.csv nor {name}.csv.gz")
    convert = pa_csv.ConvertOptions(column_types=types, include_columns=list(types))
    try:
        return pa_csv.read_csv(path, convert_options=convert)
    except (pa.ArrowException, KeyError) as error:
        raise InvalidData(f"{path.name}: {str(error).splitlines()[0]}; wanted columns: {', '.join(types)}") from error


def _write_movies(writer: FolderWriter, movies: pa.Table) -> None:
    titles = [title or "" for title in movies["title"].to_pylist()]
    genres = ["" if text in (None, _NO_GENRES) else text.replace("|", " ") for text in movies["genres"].to_pylist()]
    writer.items(
        item_id=movies["movieId"].to_numpy(),
        item_type=NameColumn(np.full(len(movies), ItemType.PIN), ITEM_TYPE_NAMES),
        text=pa.array([f"{title} {genre}".strip() for title, genre in zip(titles, genres, strict=True)], pa.string()),
        title=pa.array(titles, pa.string()),
    )
