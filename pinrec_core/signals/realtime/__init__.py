"""The realtime view: acknowledged events that the batch view may not hold yet (paper, section 4.4.1).

`HistoryStore` is the interface; in memory (tests, a laptop), RocksDB (production on one machine) and any server that
speaks the Redis protocol (past one machine: Apache Kvrocks). One process owns a RocksDB store; others ask the signal
service, so that a read sees every acknowledged write.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pinrec_core.errors import InvalidConfig
from pinrec_core.signals.realtime.memory import MemoryHistoryStore
from pinrec_core.signals.realtime.rocks import RocksHistoryStore, restore_store
from pinrec_core.signals.realtime.rows import StoredEvents
from pinrec_core.signals.realtime.store import HistoryStore

__all__ = ["HistoryStore", "MemoryHistoryStore", "RocksHistoryStore", "StoredEvents", "open_store", "restore_store"]

REDIS_SCHEMES = ("redis", "rediss")


def open_store(where: str) -> HistoryStore:
    """The durable store at `where`: a folder is RocksDB, `redis://host:port/db` a server that speaks Redis' protocol.

    Raises Unavailable if it cannot be opened now, InvalidData if another version of this code wrote it, and
    InvalidConfig for an address of another kind, a server that acknowledges before a write is durable, or where the
    Redis client is not installed.
    """
    scheme, is_address, _ = where.partition("://")
    if not is_address:
        return RocksHistoryStore(Path(where))
    if scheme not in REDIS_SCHEMES:
        raise InvalidConfig(f"store has value {where!r}; allowed: a folder, or redis://host:port/db")
    if urlsplit(where).password:
        raise InvalidConfig(
            "store's address holds a password, which other users of the host can read; "
            "allowed: redis://user@host:port/db, with the password in the file that PINREC_REDIS_PASSWORD_FILE names"
        )
    try:
        from pinrec_core.signals.realtime.redis import RedisHistoryStore
    except ImportError as error:
        raise InvalidConfig(f"store {where!r} needs the Redis client: pip install 'pinrec[redis]'") from error
    return RedisHistoryStore(where)
