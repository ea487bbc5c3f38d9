"""The store on a Redis server: which servers it takes, and what happens when one is lost."""

import os
import signal

import pytest
from redis import Redis

from pinrec_core.errors import InvalidConfig, Unavailable
from pinrec_core.schema import ItemType
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import open_store
from pinrec_core.signals.realtime.redis import RedisHistoryStore


def pin(item_id, user_id=1):
    return Event(user_id, item_id, ItemType.PIN, "save", "home", 1_000 + item_id)


def items(store, user_id=1):
    return store.read([user_id], 0, 1_000).item_ids.tolist()


@pytest.mark.parametrize("settings", [{"appendonly": "no"}, {"appendfsync": "everysec"}])
def test_a_server_that_acknowledges_too_early_is_refused_unless_told(start_redis, settings):
    url = start_redis(**settings)
    with pytest.raises(InvalidConfig, match=r"before they are on disk: it has .*; needed: Redis with appendonly yes"):
        open_store(url)
    store = RedisHistoryStore(url, durable=False)
    store.append([pin(1)])
    assert items(store) == [1]
    store.close()


def test_a_server_that_keeps_its_settings_to_itself_is_refused_unless_told(start_redis, tmp_path, monkeypatch):
    url = start_redis()
    with Redis.from_url(url) as client:
        client.acl_setuser("signals", enabled=True, passwords=["+s3cret"], keys=["*"], commands=["+@all", "-config"])
    url = url.replace("localhost", "signals@localhost")
    (tmp_path / "password").write_text("s3cret\n")
    monkeypatch.setenv("PINREC_REDIS_PASSWORD_FILE", str(tmp_path / "password"))
    with pytest.raises(InvalidConfig, match="does not say whether it syncs before it acknowledges"):
        open_store(url)
    store = RedisHistoryStore(url, durable=False)
    store.append([pin(1)])
    assert items(store) == [1]
    store.close()


def test_a_password_comes_from_a_file_only(tmp_path, monkeypatch):
    with pytest.raises(InvalidConfig, match="address holds a password, which other users") as refusal:
        open_store("redis://signals:s3cret@localhost:1/0")
    assert "s3cret" not in refusal.value.message
    monkeypatch.setenv("PINREC_REDIS_PASSWORD_FILE", str(tmp_path / "gone"))
    with pytest.raises(
        InvalidConfig, match=r"^PINREC_REDIS_PASSWORD_FILE has value '.*gone'; allowed: a readable file"
    ):
        open_store("redis://localhost:1/0")


def test_a_server_killed_keeps_every_acknowledged_event(start_redis, tmp_path):
    url = start_redis(dir=str(tmp_path))
    store = open_store(url)
    for item_id in range(50):
        store.append([pin(item_id), pin(item_id, user_id=2)])
    with Redis.from_url(url) as client:
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"^events could not be read: ConnectionError$"):
        items(store)
    with pytest.raises(Unavailable, match=r"^events could not be written: ConnectionError$"):
        store.append([pin(50)])
    with pytest.raises(Unavailable, match=r"^old events could not be dropped: ConnectionError$"):
        store.expire(5)
    store.close()
    restarted = open_store(start_redis(dir=str(tmp_path)))
    assert items(restarted) == items(restarted, user_id=2) == list(range(49, -1, -1))
    restarted.close()


def test_a_server_that_hangs_costs_one_read_its_time_and_the_next_none(start_redis, monkeypatch):
    url = start_redis()
    store = open_store(url)
    store.append([pin(1)])
    with Redis.from_url(url) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match=r"^events could not be read: TimeoutError$"):
        items(store)
    os.kill(pid, signal.SIGCONT)
    with pytest.raises(Unavailable, match=r"^events could not be read: TimeoutError$"):
        items(store)
    monkeypatch.setattr(store, "_next_read_s", 0.0)  # as when the second is over
    assert items(store) == [1]
    store.close()


def test_what_is_no_server_is_said():
    with pytest.raises(Unavailable, match=r"^realtime view cannot be opened: ConnectionError$"):
        open_store("redis://localhost:1/0")
    with pytest.raises(InvalidConfig, match="'port'; allowed: redis://host:port/db"):
        open_store("redis://user@localhost:port/0")
    with pytest.raises(InvalidConfig, match="store has value 'http://a'; allowed: a folder, or redis://host:port/db"):
        open_store("http://a")


def test_a_full_server_refuses_appends_and_reads_go_on(start_redis):
    url = start_redis()
    store = open_store(url)
    store.append([pin(1)])
    with Redis.from_url(url) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(Unavailable, match="events could not be written"):
            store.append([pin(2)])
        assert items(store) == [1]
        client.config_set("maxmemory", "0")
    store.append([pin(2)])
    assert items(store) == [2, 1]
    store.close()
