"""`pinrec events` against the real signal service."""

import asyncio
import json
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from pinrec_core.config import Config
from pinrec_core.release import ItemTable, ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.schema import ItemType, Vocabulary
from pinrec_core.text_encoder import TextEncoder
from services.cli.events import parse_time
from services.cli.main import main
from services.common.server import ServerOptions
from services.signals.server import SignalService, SignalsOptions

VOCABULARY = Vocabulary(
    positive_actions=("save",), actions=("save", "search"), surfaces=("home", "search"), search_surfaces=("search",)
)


def write_release(folder):
    items = ItemTable(
        ids=np.array([50, 181]),
        types=np.full(2, ItemType.PIN, np.uint8),
        content=np.ones((2, 2), np.int8),
        scale=np.ones(2, np.float32),
    )
    items.save(folder / "items")
    TextEncoder.fit(["star wars", "return of the jedi"], dim=2).save(folder / "text_encoder")
    (folder / "display").mkdir()
    titles = {"item_id": [50, 181], "title": ["Star Wars", "Return of the Jedi"]}
    pq.write_table(pa.table(titles), folder / "display" / "items.parquet")
    (folder / "config.json").write_text(json.dumps(Config().to_dict()))
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY.to_dict()))


@pytest.fixture
def releases(tmp_path):
    root = tmp_path / "releases"
    publish(root, ReleaseFacts("e", "e", watermark_ms=0, dataset="hand"), write_release)
    write_serving_state(root, ServingState(active=1, open=(1,)))
    return root


@pytest.fixture
def signals(tmp_path, releases):
    """Address of a signal service that runs in a thread's event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=60)

    async def start():
        options = SignalsOptions(releases, str(tmp_path / "rocksdb"))
        service = SignalService(options, ServerOptions("localhost:0"), CollectorRegistry())
        await service.start()
        return service

    service = on_loop(start())
    yield f"localhost:{service.server.port}"
    on_loop(service.server.drain())
    on_loop(service.close())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def run(*arguments, signals):
    return CliRunner().invoke(main, ["events", *arguments, "--signals", signals])


def test_appended_events_are_in_the_history_newest_first(signals, releases):
    first = run(
        *("append", "--user", "12", "--item", "50", "--item", "181", "--action", "save", "--surface", "home"),
        *("--at", "2026-07-01T12:00:00"),
        signals=signals,
    )
    assert first.output == "2 events of user 12 durable, with the time 2026-07-01 12:00:00\n"
    second = run(
        "append",
        "--user",
        "12",
        "--text",
        "space opera",
        "--surface",
        "search",
        "--at",
        "1782910801000",
        signals=signals,
    )
    assert second.output == "1 event of user 12 durable, with the time 2026-07-01 13:00:01\n"

    lines = run("history", "--user", "12", "--releases", str(releases), signals=signals).output.splitlines()
    assert lines[0] == "user 12: 3 events, 3 newer than the batch view"
    assert lines[1].split()[:4] == ["2026-07-01", "13:00:01", "search", "search"]
    assert {tuple(line.split(maxsplit=5)) for line in lines[2:]} == {
        ("2026-07-01", "12:00:00", "save", "home", "50", "Star Wars"),
        ("2026-07-01", "12:00:00", "save", "home", "181", "Return of the Jedi"),
    }
    newest = run("history", "--user", "12", "-n", "1", "--releases", str(releases), signals=signals).output
    assert newest.splitlines() == lines[:2]


def test_words_that_the_active_release_does_not_know_are_stored_and_warned_of(signals, releases):
    event = ["append", "--user", "13", "--item", "50", "--releases", str(releases)]
    known = run(*event, "--action", "save", "--surface", "home", signals=signals)
    assert known.stderr == ""
    unknown = run(*event, "--action", "poke", "--surface", "attic", signals=signals)
    assert unknown.exit_code == 0
    unknown_to = "is unknown to release 1, which knows"
    assert unknown.stderr.splitlines() == [
        f"warning: --action 'poke' {unknown_to} ['save', 'search']: stored, but the model sees it as unknown",
        f"warning: --surface 'attic' {unknown_to} ['home', 'search']: stored, but the model sees it as unknown",
    ]
    history = run("history", "--user", "13", "--releases", str(releases), signals=signals).output
    assert history.startswith("user 13: 2 events")


def test_a_user_without_events_has_an_empty_history(signals, releases):
    result = run("history", "--user", "99", "--releases", str(releases), signals=signals)
    assert result.output == "user 99: 0 events, 0 newer than the batch view\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--surface", "home"], "give either --item (once or more) or --text"),
        (["--surface", "home", "--item", "1", "--text", "x"], "give either --item (once or more) or --text"),
        (["--surface", "home", "--item", "1"], "--item needs an --action"),
    ],
)
def test_an_event_is_a_pin_with_an_action_or_a_search_query(arguments, message):
    result = run("append", "--user", "1", *arguments, signals="localhost:1")
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_service_is_one_line():
    result = run("append", "--user", "1", "--item", "1", "--action", "save", "--surface", "home", signals="localhost:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: localhost:1 is unavailable: ")
    assert "Traceback" not in result.output


def test_times():
    assert parse_time("1700000000000") == 1_700_000_000_000
    assert parse_time("2023-11-14T22:13:20") == 1_700_000_000_000
    assert parse_time("2023-11-14T23:13:20+01:00") == 1_700_000_000_000


@pytest.mark.parametrize("at", ["soon", "99999999999999999999", "²"])
def test_a_time_that_is_none_is_named(at):
    result = run(
        *("append", "--user", "1", "--item", "1", "--action", "save", "--surface", "home", "--at", at),
        signals="localhost:1",
    )
    assert result.stderr.startswith(f"Error: --at has value {at!r}; allowed: now, Unix milliseconds, ")
