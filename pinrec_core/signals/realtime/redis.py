"""The realtime view on a server that speaks the Redis protocol: past one machine, Apache Kvrocks (RocksDB behind it).

A sorted set a user: the score is the event's time (exact up to 2^53 ms), the member its id in big-endian bytes, its
time and its row, so that the server's own order is ours: by time, then by id.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError
from redis.retry import Retry

from pinrec_core.errors import InvalidConfig, Unavailable
from pinrec_core.signals.events import Event, with_event_ids
from pinrec_core.signals.realtime.rows import StoredEvents, encode_row, stored_events

KEY_PREFIX = "pinrec:events:"

_KEY = struct.Struct(">Qq")
"""event_id | timestamp_ms again: half the answer of a read, which then needs no scores."""

_KEYS = np.dtype([("event_id", ">u8"), ("timestamp_ms", ">i8")])

PASSWORD_FILE = "PINREC_REDIS_PASSWORD_FILE"

_WRITE_TIMEOUT_S = 2.0
"""For a connection and for an answer, of writes and all else that may take long."""

_READ_TIMEOUT_S = 0.1
"""A history waits no longer: without the store it still has the batch view."""

_SILENT_S = 1.0
"""So long a server that did not answer a read is asked no other."""

_PIECE = 500
"""Users whose old events one round trip of `expire` drops."""


class RedisHistoryStore:
    """Events in Redis or Kvrocks, appended in one transaction. Several processes may share the server."""

    def __init__(self, url: str, durable: bool = True) -> None:
        """Connect to `redis://host:port/db`.

        Raises Unavailable if the server does not answer, and InvalidConfig for a bad address or, unless told that the
        store need not be `durable`, for a server that would acknowledge a write before it is on disk.
        """
        password = _password()
        try:
            self._redis, self._reader = (
                _client(url, password, timeout_s) for timeout_s in (_WRITE_TIMEOUT_S, _READ_TIMEOUT_S)
            )
        except ValueError as error:
            raise InvalidConfig(f"store's address: {error}; allowed: redis://host:port/db") from error
        self._next_read_s = 0.0
        with _unavailable("realtime view cannot be opened"):
            self._redis.ping()
            if durable:
                self._check_durable()

    def append(self, events: Sequence[Event]) -> int:
        """See `HistoryStore`. One MULTI/EXEC; the server syncs before it answers."""
        members: dict[str, dict[bytes, int]] = {}
        for event in with_event_ids(events):
            of_user = members.setdefault(_key(event.user_id), {})
            of_user[_KEY.pack(event.event_id, event.timestamp_ms) + encode_row(event)] = event.timestamp_ms
        with _unavailable("events could not be written"), self._redis.pipeline(transaction=True) as pipeline:
            for key, of_user in members.items():
                pipeline.zadd(key, of_user)
            pipeline.execute()
        return len(events)

    def read(self, user_ids: Sequence[int], since_ms: int, limit: int) -> StoredEvents:
        """See `HistoryStore`. One round trip."""
        with _unavailable("events could not be read"), self._reader.pipeline(transaction=False) as pipeline:
            if time.monotonic() < self._next_read_s:
                raise TimeoutError
            for user_id in user_ids:
                pipeline.zrevrangebyscore(_key(user_id), "+inf", since_ms, 0, limit)
            try:
                found = [_each_once(members) for members in pipeline.execute()]
            except TimeoutError:
                self._next_read_s = time.monotonic() + _SILENT_S
                raise
        members = [member for of_user in found for member in of_user]
        keys = np.frombuffer(b"".join([member[: _KEY.size] for member in members]), _KEYS)
        return stored_events(
            [len(of_user) for of_user in found],
            keys["timestamp_ms"].astype(np.int64),
            keys["event_id"].astype(np.uint64),
            [member[_KEY.size :] for member in members],
        )

    def expire(self, before_ms: int) -> int:
        """See `HistoryStore`."""
        dropped = 0
        with _unavailable("old events could not be dropped"):
            users = self._redis.scan_iter(match=f"{KEY_PREFIX}*", count=_PIECE)
            while keys := list(islice(users, _PIECE)):
                with self._redis.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.zremrangebyscore(key, "-inf", f"({before_ms}")
                    dropped += sum(pipeline.execute())
        return dropped

    def close(self) -> None:
        """See `HistoryStore`."""
        self._redis.close()
        self._reader.close()

    def _check_durable(self) -> None:
        """Redis syncs its log by its own settings, Kvrocks RocksDB's by another; neither has the other's."""
        try:
            says = {name: self._setting(name) for name in ("appendonly", "appendfsync", "rocksdb.write_options.sync")}
        except ResponseError as error:
            raise InvalidConfig(
                "the store does not say whether it syncs before it acknowledges: allow its user CONFIG GET"
            ) from error
        is_durable = (says["appendonly"], says["appendfsync"]) == ("yes", "always")
        if not is_durable and says["rocksdb.write_options.sync"] != "yes":
            raise InvalidConfig(
                f"the store acknowledges events before they are on disk: it has {says}; needed: Redis with appendonly "
                "yes and appendfsync always, or Kvrocks with rocksdb.write_options.sync yes"
            )

    def _setting(self, name: str) -> str | None:
        return cast("Mapping[str, str]", self._redis.config_get(name)).get(name)


def _client(url: str, password: str | None, timeout_s: float) -> Redis:
    """A connection that the server closed meanwhile is opened again at once, once."""
    retry = Retry(NoBackoff(), retries=1, supported_errors=(ConnectionError,))
    return Redis.from_url(
        url, password=password, socket_timeout=timeout_s, socket_connect_timeout=timeout_s, retry=retry
    )


def _password() -> str | None:
    """What the file holds that `PASSWORD_FILE` names. Raises InvalidConfig if it cannot be read."""
    path = os.environ.get(PASSWORD_FILE)
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{PASSWORD_FILE} has value {path!r}; allowed: a readable file") from error


def _key(user_id: int) -> str:
    return f"{KEY_PREFIX}{user_id}"


def _each_once(members: list[bytes]) -> list[bytes]:
    """Members newest first, without a second one of an id and time: an event that came again with other contents."""
    keys = [member[: _KEY.size] for member in members]
    return [member for member, key, before in zip(members, keys, [b"", *keys], strict=False) if key != before]


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """Redis' errors as ours, by their kind alone: their messages name addresses."""
    try:
        yield
    except RedisError as error:
        raise Unavailable(f"{what}: {type(error).__name__}") from error
