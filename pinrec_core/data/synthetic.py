"""A seeded world with planted truth: what each user wants, and how often each item is saved or clicked when shown.

- Items belong to topics ("mossy lantern"). Their content is the topic's centre, plus two directions shared by all
  topics along which it shows how well the item is saved and clicked, plus noise of its own. The two qualities are
  negatively correlated, so that within a topic the best-saved and the best-clicked items are different ones.
- Users hold several interests (topics), one of which is replaced at some moment of their life. Their events come in
  sessions: on `home` interests interleave, on `related` one is followed, on `search` a query names the topic of what
  follows.
- Items are shown by popularity (Zipf within a topic) and logged if saved or clicked; a user is shown an item once.

Arrays of the world take some 50 bytes an item and a user; content and events are made and written in shards, so that a
million items and ten million events need bounded memory. Everything depends only on the spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from pinrec_core.data.synthetic_words import TOPIC_NAMES
from pinrec_core.data.writer import FolderWriter, NameColumn
from pinrec_core.errors import InvalidConfig
from pinrec_core.event_log.contract import DatasetFacts
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType
from pinrec_core.text_encoder import query_item_id

OUTCOMES = ("save", "click")
SURFACES = ("home", "related", "search")
FIRST_ITEM_ID = 9_000_000_000
"""Ids above 32 bits, so that a lossy cast anywhere shows."""
FIRST_USER_ID = 1
END_MS = 1_735_689_600_000
"""The log ends at the start of 2025."""

_DAY_MS = 86_400_000
_QUERIES = ("{}", "{} ideas", "best {}")
_ACTIONS = (*OUTCOMES, SEARCH_ACTION)
_SEARCH_CODE = len(OUTCOMES)
_INTEREST_SHARES = (0.5, 0.3, 0.2)
_SURFACE_SHARES = (0.6, 0.25, 0.15)
_SWITCH_SHARE = (0.4, 0.05, 0.0)
"""Probability, by surface, that an event of a session turns to another of the user's interests."""
_EVENTS_A_SESSION = 6
_OFF_INTEREST = 0.1
"""How much less likely any outcome is for an item outside the user's interests; also the share of such events."""
_QUALITY_CORRELATION = -0.6
_QUALITY_IN_CONTENT = 0.4
_NOISE_IN_CONTENT = 0.5
_ITEMS_A_SHARD = 1 << 16
_EVENTS_A_SHARD = 1 << 18
_SPARE_EVENTS = 2.0
"""Events drawn for each one wanted: repeats of a (user, item) pair are struck out."""
_WORLD, _CONTENT, _EVENTS = 0, 1, 2
"""Keep the random streams of the world, of items' content and of events apart."""


@dataclass(frozen=True)
class SyntheticSpec:
    """Sizes of a synthetic world."""

    users: int = 2_000
    items: int = 2_000
    events: int = 100_000
    """About so many; a little fewer where users have been shown everything that they want."""
    topics: int = 0
    """0 = one for 40 items, between 4 and 1,000."""
    content_dim: int = 32
    days: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("users", 1), ("items", 8), ("events", 1), ("content_dim", 4), ("days", 1)):
            if getattr(self, name) < low:
                raise InvalidConfig(f"synthetic {name} has value {getattr(self, name)}; allowed: at least {low}")
        if not 0 <= self.topics <= min(len(TOPIC_NAMES), self.items):
            raise InvalidConfig(
                f"synthetic topics has value {self.topics}; allowed: 0 to {min(len(TOPIC_NAMES), self.items)}"
            )

    @property
    def num_topics(self) -> int:
        """Topics of the world."""
        return self.topics or int(np.clip(self.items // 40, 4, 1_000))


class SyntheticWorld:
    """The world of a spec: `write` makes its log, `rates`, `topic_of` and `interests_of` tell its truth."""

    outcomes = OUTCOMES

    def __init__(self, spec: SyntheticSpec) -> None:
        self.spec = spec
        rng = np.random.default_rng([spec.seed, _WORLD])
        topics, items = spec.num_topics, spec.items
        self._topic = np.sort(np.concatenate([np.arange(topics), rng.integers(0, topics, items - topics)]))
        self._first_of_topic = np.searchsorted(self._topic, np.arange(topics + 1))
        place = np.arange(items) - self._first_of_topic[self._topic]
        self._popularity = 1.0 / (1.0 + place) ** 0.8
        self._quality = _correlated(rng, items)
        self._item_rates = _rates(self._quality)
        self._centres = _unit(rng.standard_normal((topics, spec.content_dim)))
        self._directions = np.linalg.qr(rng.standard_normal((spec.content_dim, 2)))[0].T
        self._interests, self._new_interest, self._drift_slot, self._drift_at = self._draw_interests(rng)
        weights = rng.lognormal(0.0, 0.8, spec.users)
        wanted = np.cumsum(weights / weights.sum()) * spec.events
        self._num_events = np.diff(np.rint(wanted).astype(np.int64), prepend=0)

    def _draw_interests(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Interests [U, M] at first; the new one [U], the slot it takes [U], and at what share of a life [U]."""
        users, topics, slots = self.spec.users, self.spec.num_topics, len(_INTEREST_SHARES)
        # Distinct topics without a loop over users: steps of at least one around the circle of topics.
        start = np.minimum(rng.zipf(1.5, users) - 1, rng.integers(0, topics, users))
        steps = rng.integers(1, max(topics // (slots + 1), 1) + 1, (users, slots))
        drawn = (
            start[:, None] + np.concatenate([np.zeros((users, 1), np.int64), np.cumsum(steps, axis=1)], 1)
        ) % topics
        return drawn[:, :slots], drawn[:, slots], rng.integers(0, slots, users), rng.uniform(0.5, 0.9, users)

    # Truth

    def item_ids(self) -> NDArray[np.int64]:
        """int64 [items]: every item, ascending."""
        return FIRST_ITEM_ID + np.arange(self.spec.items)

    def user_ids(self) -> NDArray[np.int64]:
        """int64 [users]: every user, ascending; a user may have no event."""
        return FIRST_USER_ID + np.arange(self.spec.users)

    def rates(self, user_ids: NDArray[np.int64], item_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Planted probability of each outcome when the item is shown: int64 [n], int64 [n] -> float64 [n, A].

        The user's interests are those at the log's end; outside of them every rate is a tenth.
        """
        wanted = self._final_interests[np.asarray(user_ids) - FIRST_USER_ID]
        matches = (wanted == self.topic_of(item_ids)[:, None]).any(axis=1)
        return self.item_rates(item_ids) * np.where(matches, 1.0, _OFF_INTEREST)[:, None]

    def item_rates(self, item_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Planted rates for a user interested in the item's topic: int64 [n] -> float64 [n, A], in OUTCOMES order."""
        rates: NDArray[np.float64] = self._item_rates[np.asarray(item_ids) - FIRST_ITEM_ID]
        return rates

    def topic_of(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Topic of each item: int64 [n] -> int64 [n]."""
        topics: NDArray[np.int64] = self._topic[np.asarray(item_ids) - FIRST_ITEM_ID]
        return topics

    def interests_of(self, user_id: int) -> NDArray[np.int64]:
        """Topics that a user wants at the log's end, most wanted first: int64 [M]."""
        interests: NDArray[np.int64] = self._final_interests[user_id - FIRST_USER_ID]
        return interests

    def topic_name(self, topic: int) -> str:
        """Two words, as in item texts and search queries."""
        return TOPIC_NAMES[topic]

    @cached_property
    def _final_interests(self) -> NDArray[np.int64]:
        final = self._interests.copy()
        final[np.arange(len(final)), self._drift_slot] = self._new_interest
        return final

    # Log

    def write(self, folder: Path, progress: bool = False) -> None:
        """Write the world's log in the event-log contract. Raises InvalidData if `folder` is not empty."""
        facts = DatasetFacts(name="synthetic", outcomes=OUTCOMES, search_surfaces=("search",))
        with FolderWriter(folder, facts) as writer:
            self._write_items(writer, progress)
            self._write_events(writer, progress)

    def _write_items(self, writer: FolderWriter, progress: bool) -> None:
        with tqdm(total=self.spec.items, desc="items", unit="item", unit_scale=True, disable=not progress) as bar:
            for shard, first in enumerate(range(0, self.spec.items, _ITEMS_A_SHARD)):
                rows = np.arange(first, min(first + _ITEMS_A_SHARD, self.spec.items))
                writer.items(
                    item_id=FIRST_ITEM_ID + rows,
                    item_type=NameColumn(np.full(len(rows), ItemType.PIN), ITEM_TYPE_NAMES),
                    embedding=self._content(rows, shard),
                    text=pa.array([self._text(row) for row in rows.tolist()], pa.string()),
                )
                bar.update(len(rows))

    def _content(self, rows: NDArray[np.int64], shard: int) -> NDArray[np.float32]:
        rng = np.random.default_rng([self.spec.seed, _CONTENT, shard])
        noise = rng.standard_normal((len(rows), self.spec.content_dim)) / np.sqrt(self.spec.content_dim)
        shown = self._quality[rows] @ self._directions
        vectors = self._centres[self._topic[rows]] + _QUALITY_IN_CONTENT * shown + _NOISE_IN_CONTENT * noise
        return _unit(vectors).astype(np.float32)

    def _text(self, row: int) -> str:
        topic = int(self._topic[row])
        return f"{TOPIC_NAMES[topic]} {row - int(self._first_of_topic[topic]):04d}"

    def _write_events(self, writer: FolderWriter, progress: bool) -> None:
        total = int(self._num_events.sum())
        boundaries = np.searchsorted(np.cumsum(self._num_events), np.arange(_EVENTS_A_SHARD, total, _EVENTS_A_SHARD))
        bounds = np.unique(np.concatenate([[0], boundaries, [self.spec.users]]))
        with tqdm(total=total, desc="events", unit="event", unit_scale=True, disable=not progress) as bar:
            for shard, (first, last) in enumerate(pairwise(bounds.tolist())):
                rng = np.random.default_rng([self.spec.seed, _EVENTS, shard])
                _write_shard(writer, self._shard(np.arange(first, last), rng))
                bar.update(int(self._num_events[first:last].sum()))

    def _shard(self, users: NDArray[np.int64], rng: np.random.Generator) -> _Shard:
        """All events of some users, by user and time."""
        wanted = self._num_events[users]
        drawn = np.ceil(wanted * _SPARE_EVENTS).astype(np.int64)
        user = np.repeat(users, drawn)
        place = np.arange(len(user)) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        life = (place + 0.5) / np.repeat(np.maximum(drawn, 1), drawn)
        starts = (place == 0) | (rng.random(len(user)) < 1 / _EVENTS_A_SESSION)
        session = np.cumsum(starts) - 1
        surface = rng.choice(len(SURFACES), size=int(starts.sum()), p=_SURFACE_SHARES)[session]
        topic = self._topics(user, life, starts, surface, rng)
        is_query = starts & (surface == SURFACES.index("search"))
        item = self._pick_items(topic, rng)
        rates = self._item_rates[item]
        action = (rng.random(len(user)) * rates.sum(axis=1) >= rates[:, 0]).astype(np.int64)
        times = _times(user, starts, session, self.spec.days, rng)
        kept = _first_showings(user, item, is_query, wanted, users)
        shard = _Shard(user, item, topic, surface, np.where(is_query, _SEARCH_CODE, action), times)
        return shard.take(kept)

    def _topics(
        self,
        user: NDArray[np.int64],
        life: NDArray[np.float64],
        starts: NDArray[np.bool_],
        surface: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[np.int64]:
        """Topic of each event: interests switch within a session by surface, drift over a life, and rarely stray."""
        turns = starts | (rng.random(len(user)) < np.array(_SWITCH_SHARE)[surface])
        latest = np.maximum.accumulate(np.where(turns, np.arange(len(user)), 0))
        slot = rng.choice(len(_INTEREST_SHARES), size=len(user), p=_INTEREST_SHARES)[latest]
        drifted = (slot == self._drift_slot[user]) & (life[latest] >= self._drift_at[user])
        topic = np.where(drifted, self._new_interest[user], self._interests[user, slot])
        strays = (rng.random(len(user)) < _OFF_INTEREST) & (surface != SURFACES.index("search"))
        return np.where(strays, rng.integers(0, self.spec.num_topics, len(user)), topic)

    def _pick_items(self, topic: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """An item of each topic, by popularity times the chance that it is engaged with at all."""
        low, high = self._mass[self._first_of_topic[topic]], self._mass[self._first_of_topic[topic + 1]]
        found = np.searchsorted(self._mass, low + rng.random(len(topic)) * (high - low), side="right") - 1
        # Rounding in the prefix sums must not hand out a neighbour of another topic.
        return np.clip(found, self._first_of_topic[topic], self._first_of_topic[topic + 1] - 1)

    @cached_property
    def _mass(self) -> NDArray[np.float64]:
        """float64 [items + 1]: prefix sums of how often items are engaged with."""
        return np.concatenate([[0.0], np.cumsum(self._popularity * self._item_rates.sum(axis=1))])


@dataclass(frozen=True)
class _Shard:
    """Events of some users: rows of the world, not ids."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    topic: NDArray[np.int64]
    surface: NDArray[np.int64]
    action: NDArray[np.int64]
    times: NDArray[np.int64]

    def take(self, kept: NDArray[np.bool_]) -> _Shard:
        """The rows of a mask."""
        return _Shard(*(column[kept] for column in vars(self).values()))


def _write_shard(writer: FolderWriter, shard: _Shard) -> None:
    is_query = shard.action == _SEARCH_CODE
    used = np.unique(shard.topic[is_query])
    texts = [pattern.format(TOPIC_NAMES[topic]) for topic in used for pattern in _QUERIES]
    ids = np.array([query_item_id(text) for text in texts], dtype=np.int64)
    # Which of the wordings is typed follows from the item that the row had drawn: as good as any dice.
    text = np.searchsorted(used, shard.topic) * len(_QUERIES) + shard.item % len(_QUERIES)
    item_ids = FIRST_ITEM_ID + shard.item
    item_ids[is_query] = ids[text[is_query]]
    writer.events(
        user_id=FIRST_USER_ID + shard.user,
        item_id=item_ids,
        item_type=NameColumn(np.where(is_query, ItemType.SEARCH_QUERY, ItemType.PIN), ITEM_TYPE_NAMES),
        action=NameColumn(shard.action, _ACTIONS),
        surface=NameColumn(shard.surface, SURFACES),
        timestamp_ms=shard.times,
        text=NameColumn(np.where(is_query, text, -1), texts),
    )


def _first_showings(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    is_query: NDArray[np.bool_],
    wanted: NDArray[np.int64],
    users: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Mask [n]: no (user, item) twice, and of each user the last `wanted` events (interests end as planted)."""
    key = np.where(is_query, -1 - np.arange(len(user)), user * (item.max(initial=0) + 1) + item)
    kept = np.zeros(len(user), dtype=bool)
    kept[np.unique(key, return_index=True)[1]] = True
    row = user - users[0]
    left = np.bincount(row[kept], minlength=len(users))
    before = np.cumsum(kept) - kept - np.repeat(np.cumsum(left) - left, np.bincount(row, minlength=len(users)))
    result: NDArray[np.bool_] = kept & (before >= (left - wanted)[row])
    return result


def _times(
    user: NDArray[np.int64],
    starts: NDArray[np.bool_],
    session: NDArray[np.int64],
    days: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Milliseconds [n], ascending within a user: sessions spread over the days, seconds to minutes within one."""
    owner = user[starts]
    began = rng.integers(0, days * _DAY_MS, len(owner))
    began = began[np.lexsort((began, owner))]
    gaps = np.where(starts, 0, rng.integers(3_000, 120_000, len(user)))
    since = np.cumsum(gaps)
    times = began[session] + since - since[starts][session]
    ordered: NDArray[np.int64] = END_MS - days * _DAY_MS + times[np.lexsort((times, user))]
    return ordered


def _correlated(rng: np.random.Generator, items: int) -> NDArray[np.float64]:
    """Standard normal qualities [items, 2] for save and click, negatively correlated."""
    save, other = rng.standard_normal((2, items))
    click = _QUALITY_CORRELATION * save + np.sqrt(1 - _QUALITY_CORRELATION**2) * other
    return np.stack([save, click], axis=1)


def _rates(quality: NDArray[np.float64]) -> NDArray[np.float64]:
    """Planted rates [items, 2] from the qualities: saves 1 to 40 %, clicks 2 to 60 %."""
    rise = 1.0 / (1.0 + np.exp(-2.0 * quality + 1.2))
    return np.array([0.01, 0.02]) + np.array([0.39, 0.58]) * rise


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
