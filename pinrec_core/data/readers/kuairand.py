"""KuaiRand-Pure, as the cut of three Parquet files that its date splits use.

    log_0425_0508.parquet                     impressions with their flags, tab and time
    train_history_0409_0424_last50.parquet    each user's impressions before that, in order (`pos`), without time or tab
    raw/item_features.parquet                 author, tags, music of the videos

An impression with an engagement becomes one event whose action is the strongest: `like` (like, follow, comment, forward
or an entered profile), then `long_view`, then `click`. `actions` keeps every flag by its own name.
Without an engagement, hated, or logged twice with the same time, it is dropped. Tabs are the surfaces `tab_<n>`; rows
of the history are on the surface `unknown` with `pos` as their time, which the contract reads as order only. A video's
text is its author, tags and music as words; the counters of item_features cover the period that is predicted and are
not read.

CC BY-SA 4.0. Gao et al., KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos, 2022.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pinrec_core.data.readers.summary import ReadSummary
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidData
from pinrec_core.event_log.contract import UNKNOWN_SURFACE, DatasetFacts
from pinrec_core.event_log.events import repeats
from pinrec_core.schema import ITEM_TYPE_NAMES, ItemType

LOG = "log_0425_0508.parquet"
HISTORY = "train_history_0409_0424_last50.parquet"
ITEMS = "raw/item_features.parquet"
OUTCOMES = ("like", "long_view", "click")
"""Strongest first."""
FLAGS = {
    "is_like": 0, "is_follow": 0, "is_comment": 0, "is_forward": 0, "is_profile_enter": 0, "long_view": 1,
    "is_click": 2,
}  # fmt: skip
"""Columns of the log that are engagements, and the outcome that each one makes."""
_FLAG_NAMES = [name.removeprefix("is_") for name in FLAGS]
NO_OUTCOME = len(OUTCOMES)
"""Place of an impression without engagement."""


def convert(source: Path, folder: Path) -> ReadSummary:
    """Write `folder` from the cut in `source`. Raises InvalidData naming a missing file or column."""
    log = _read(source, LOG, ["user_id", "video_id", "time_ms", "tab", "is_hate", *FLAGS])
    history = _read(source, HISTORY, ["user_id", "video_id", "pos", "long_view", "is_like"])
    items = _read(source, ITEMS, ["video_id", "author_id", "music_id", "tag"])
    tabs = np.unique(log["tab"].to_numpy()).tolist()
    surfaces = [UNKNOWN_SURFACE, *(f"tab_{tab}" for tab in tabs)]
    log_outcome, history_outcome = outcome_of(log), outcome_of(history)
    hated = (log["is_hate"].to_numpy() > 0) & (log_outcome != NO_OUTCOME)
    log_outcome[hated] = NO_OUTCOME
    repeated = (log_outcome != NO_OUTCOME) & repeats(
        [*(log[name].to_numpy() for name in ("user_id", "video_id", "time_ms", "tab")), log_outcome]
    )
    log_outcome[repeated] = NO_OUTCOME
    with FolderWriter(folder, DatasetFacts(name="kuairand-pure", outcomes=OUTCOMES)) as writer:
        _write_items(writer, items)
        for table, outcome, time in ((history, history_outcome, "pos"), (log, log_outcome, "time_ms")):
            tab = table["tab"].to_numpy() if "tab" in table.column_names else None
            surface = np.zeros(len(table)) if tab is None else 1 + np.searchsorted(tabs, tab)
            _write_events(writer, table, outcome, time, NameColumn(surface, surfaces))
    both = np.concatenate([history_outcome, log_outcome])
    idle = int((log_outcome == NO_OUTCOME).sum())
    users = np.concatenate([history["user_id"].to_numpy(), log["user_id"].to_numpy()])[both != NO_OUTCOME]
    return ReadSummary(
        users=len(np.unique(users)),
        items=len(items),
        events={name: int((both == place).sum()) for place, name in enumerate(OUTCOMES)},
        left_out={
            "impressions without engagement, log": idle - int(hated.sum()) - int(repeated.sum()),
            "impressions without engagement, history": int((history_outcome == NO_OUTCOME).sum()),
            "hated": int(hated.sum()),
            "logged twice": int(repeated.sum()),
        },
    )


def _read(source: Path, name: str, columns: list[str]) -> pa.Table:
    path = source / name
    if not path.is_file():
        raise InvalidData(f"{source} does not hold {name}")
    try:
        missing = [column for column in columns if column not in pq.read_schema(path).names]
        if missing:
            raise InvalidData(f"{name} lacks columns {missing}")
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"{name}: {str(error).splitlines()[0]}") from error


def outcome_of(table: pa.Table) -> NDArray[np.int32]:
    """Place in OUTCOMES of each impression's strongest engagement, NO_OUTCOME without one: int32 [n].

    Columns of FLAGS that the table lacks are engagements that it does not tell of.
    """
    outcome = np.full(len(table), NO_OUTCOME, dtype=np.int32)
    for flag, place in FLAGS.items():
        if flag in table.column_names:
            outcome = np.where(table[flag].to_numpy() > 0, np.minimum(outcome, np.int32(place)), outcome)
    return outcome


def _write_events(
    writer: FolderWriter, table: pa.Table, outcome: NDArray[np.int32], time: str, surface: NameColumn
) -> None:
    kept = outcome != NO_OUTCOME
    order = np.flatnonzero(kept)[np.lexsort((table[time].to_numpy()[kept], table["user_id"].to_numpy()[kept]))]
    writer.events(
        user_id=table["user_id"].to_numpy()[order].astype(np.int64),
        item_id=table["video_id"].to_numpy()[order].astype(np.int64),
        item_type=NameColumn(np.full(len(order), ItemType.PIN), ITEM_TYPE_NAMES),
        action=NameColumn(outcome[order], OUTCOMES),
        surface=NameColumn(surface.codes[order], surface.names),
        timestamp_ms=table[time].to_numpy()[order].astype(np.int64),
        actions=flag_lists(table.select([name for name in FLAGS if name in table.column_names]).take(pa.array(order))),
    )


def flag_lists(table: pa.Table) -> pa.Array:
    """list<string> [n]: the names of all engagements of each impression, in the order of FLAGS."""
    absent = np.zeros(len(table), dtype=bool)
    raised = np.stack([table[flag].to_numpy() > 0 if flag in table.column_names else absent for flag in FLAGS], axis=1)
    offsets = np.concatenate([[0], np.cumsum(raised.sum(axis=1))]).astype(np.int32)
    names = pa.array(_FLAG_NAMES, pa.string()).take(pa.array(np.nonzero(raised)[1]))
    return pa.ListArray.from_arrays(offsets, names)


def _write_items(writer: FolderWriter, items: pa.Table) -> None:
    columns = (items[name].to_pylist() for name in ("author_id", "music_id", "tag"))
    writer.items(
        item_id=items["video_id"].to_numpy().astype(np.int64),
        item_type=NameColumn(np.full(len(items), ItemType.PIN), ITEM_TYPE_NAMES),
        text=pa.array([words(*row) for row in zip(*columns, strict=True)], pa.string()),
    )


def words(author: int | str | None, music: int | str | None, tags: str | None) -> str:
    """What a video's text says: its tags, author and music as words; what is null or empty is left out."""
    told = [f"tag{tag.strip()}" for tag in (tags or "").split(",") if tag.strip()]
    told += [f"author{author}"] if author not in (None, "") else []
    told += [f"music{music}"] if music not in (None, "") else []
    return " ".join(told)
