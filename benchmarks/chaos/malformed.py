"""Hostile input to gateway, signals and items: bytes on the port, bytes as messages, messages with extreme fields."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.chaos import wrong_requests as wrong
from benchmarks.chaos.calling import request_of, words
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.http2 import DATA, END_HEADERS, HEADERS, PREFACE, call_of, frame, grpc_headers, opening
from benchmarks.chaos.table import Row, show
from benchmarks.chaos.world import World
from pinrec_core.release import open_release
from services.proto.candidates_pb2 import BatchGetCandidatesRequest
from services.proto.items_pb2 import AddItemsRequest, DeleteItemsRequest, GetChangesRequest, Item, ListItemsRequest
from services.proto.releases_pb2 import TryReleaseRequest
from services.proto.signals_pb2 import AppendEventsRequest, BackupRequest, Event, GetHistoriesRequest, HistoryRequest

TOTAL = 100_000
SHARES = {"bytes": 0.12, "messages": 0.58, "fields": 0.30}
AT_ONCE, CONNECTIONS = 16, 64
ANSWER_S, CALL_S = 0.1, 10.0
_LEAKS = re.compile(r"Traceback|File \"|\.py\b|site-packages")
_CODES = grpc.StatusCode
RIGHT = {_CODES.OK, _CODES.INVALID_ARGUMENT}
_LOAD = {_CODES.RESOURCE_EXHAUSTED, _CODES.DEADLINE_EXCEEDED}
RELEASE_UNKNOWN = _CODES.UNAVAILABLE
_EVENT = Event(user_id=wrong.FIRST_USER, item_id=3, item_type="pin", action="save", surface="home", timestamp_ms=1)


@dataclass(frozen=True)
class Method:
    """A method, where it is, a message that its mutations start from, and the codes that any bytes may be answered."""

    server: str
    path: str
    message: bytes
    right: frozenset[grpc.StatusCode] = frozenset(RIGHT)


def _method(server: str, path: str, message: Any, *more: grpc.StatusCode) -> Method:
    return Method(server, f"/pinrec.v1.{path}", message.SerializeToString(), frozenset({*RIGHT, *more}))


_BATCH = BatchGetCandidatesRequest(requests=[request_of(1), request_of(2)])
_HISTORIES = GetHistoriesRequest(release=1, requests=[HistoryRequest(user_id=1, surface=1, search_query="boots")])
_ITEM = Item(item_id=10**12, embedding=[0.5] * 8, title="lantern")
METHODS = [
    _method("gateway", "CandidateService/GetCandidates", request_of(3)),
    _method("gateway", "CandidateService/BatchGetCandidates", _BATCH),
    _method("gateway", "ReleaseService/TryRelease", TryReleaseRequest(release=77), _CODES.RESOURCE_EXHAUSTED),
    _method("signals", "SignalService/AppendEvents", AppendEventsRequest(events=[_EVENT])),
    _method("signals", "SignalService/GetHistories", _HISTORIES, RELEASE_UNKNOWN),
    _method("signals", "SignalService/Backup", BackupRequest(name="../x"), _CODES.FAILED_PRECONDITION),
    _method("items", "ItemService/AddItems", AddItemsRequest(items=[_ITEM])),
    _method("items", "ItemService/DeleteItems", DeleteItemsRequest(item_ids=[10**12])),
    _method("items", "ItemService/GetChanges", GetChangesRequest(release=9), RELEASE_UNKNOWN),
    _method("items", "ItemService/ListItems", ListItemsRequest(after_sequence=1 << 40)),
    Method("gateway", "/pinrec.v1.CandidateService/None", b"x", frozenset({_CODES.UNIMPLEMENTED})),
    Method("signals", "/", b"x", frozenset({_CODES.UNIMPLEMENTED})),
]


@dataclass
class Tally:
    """What was tried of one kind, what came back, and what should not have."""

    kind: str
    tried: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def row(self) -> Row:
        """Met if nothing came back that should not."""
        return Row(
            self.kind,
            "the right code every time, no traceback and no path",
            f"{self.tried:,} tried: {words(dict(self.codes.most_common()))}; {len(self.wrong)} wrong"
            + "".join(f"\n            {one}" for one in self.wrong[:5]),
            not self.wrong,
            {"tried": self.tried, "codes": dict(self.codes), "wrong": self.wrong[:50]},
        )


def measure(world: World, folder: Path, total: int = TOTAL) -> list[Row]:
    """All kinds against a running stack."""
    with running(world, folder) as fleet:
        return [show(row) for row in asyncio.run(attack(fleet, total))]


async def attack(fleet: Fleet, total: int) -> list[Row]:
    """A share of `total` of each kind; the last row says whether anything broke."""
    servers = {"gateway": fleet.gateway, "signals": fleet.signals, "items": fleet.items}
    before = _alive(fleet), fleet.restarts(), len(fleet.logs())
    tallies = [
        await raw_bytes(servers, round(total * SHARES["bytes"])),
        await raw_messages(servers, round(total * SHARES["messages"])),
        *await asyncio.to_thread(extreme_fields, fleet, round(total * SHARES["fields"])),
    ]
    return [*(tally.row() for tally in tallies), _survived(fleet, *before)]


def _alive(fleet: Fleet) -> dict[str, int]:
    return {**{name: part.pid for name, part in fleet.parts.items()}, **fleet.parts["triton"].stages()}


def _survived(fleet: Fleet, pids: dict[str, int], restarts: int, log_length: int) -> Row:
    died = [name for name, pid in _alive(fleet).items() if pids[name] != pid]
    tracebacks = fleet.logs()[log_length:].count("Traceback")
    return Row(
        "after all of it",
        "0 crashes, 0 tracebacks in the logs",
        f"{fleet.restarts() - restarts} restarts {died}, {tracebacks} tracebacks",
        not died and fleet.restarts() == restarts and tracebacks == 0,
        {"died": died, "tracebacks": tracebacks},
    )


async def raw_bytes(servers: dict[str, str], count: int) -> Tally:
    """Connections that send what is no gRPC, or gRPC until somewhere."""
    tally, rng, addresses = Tally("bytes on the port"), random.Random(0), list(servers.values())

    async def one(number: int) -> None:
        came = await _exchange(addresses[number % len(addresses)], bytes_of(rng, number // len(addresses)))
        tally.tried += 1
        tally.codes["closed or silent" if not came else "answered by a frame"] += 1
        if _LEAKS.search(came.decode("latin-1")):
            tally.wrong.append(f"bytes {number}: {came[:200]!r}")

    await _at_once(count, one, CONNECTIONS)
    return tally


def bytes_of(rng: random.Random, number: int) -> bytes:
    """The `number`-th kind of bytes, in turn."""
    junk = rng.randbytes(rng.randrange(1, 600))
    call = call_of(1, grpc_headers("/pinrec.v1.CandidateService/GetCandidates", 1.0), junk)
    kinds = (
        junk,
        PREFACE + junk,
        opening(65_535) + junk,
        opening(65_535) + frame(rng.randrange(256), rng.randrange(256), rng.randrange(1 << 31), junk),
        opening(65_535) + frame(HEADERS, END_HEADERS, 1, junk),
        opening(65_535) + call[: rng.randrange(len(call))],
        opening(65_535) + call[:-9] + frame(DATA, 1, 1, b"\xff" * 9),
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n" + junk,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + junk,
    )
    return kinds[number % len(kinds)]


async def _exchange(address: str, sent: bytes) -> bytes:
    """Send, close our side, and take what comes until the other closes or is silent."""
    host, port = address.rsplit(":", 1)
    came = b""
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), CALL_S)
        writer.write(sent)
        writer.write_eof()
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            came = await asyncio.wait_for(reader.read(), ANSWER_S)
        writer.close()
    return came


async def raw_messages(servers: dict[str, str], count: int) -> Tally:
    """Calls of every method whose message is random, or a good one that was damaged."""
    tally, rng = Tally("bytes as messages of every method"), random.Random(1)
    async with contextlib.AsyncExitStack() as channels:
        opened = {
            name: await channels.enter_async_context(grpc.aio.insecure_channel(address))
            for name, address in servers.items()
        }
        calls = [(method, opened[method.server].unary_unary(method.path)) for method in METHODS]

        async def one(number: int) -> None:
            method, call = calls[number % len(calls)]
            sent = damaged(rng, method.message)
            code, details = await outcome(partial(call, sent, timeout=CALL_S))
            note(tally, code, details, method.right, f"{method.path} {sent[:60].hex()}")

        await _at_once(count, one)
    return tally


def damaged(rng: random.Random, message: bytes) -> bytes:
    """Random bytes, or `message` with bits flipped, cut, doubled, or with bytes put in."""
    changed, place = bytearray(message), rng.randrange(len(message))
    how = rng.randrange(6)
    if how == 0:
        return rng.randbytes(rng.randrange(200))
    if how == 1:
        return message[:place]
    if how == 2:
        return message * rng.randrange(2, 5)
    if how == 3:
        return message[:place] + rng.randbytes(rng.randrange(1, 12)) + message[place:]
    if how == 4:
        return message[:place] + b"\xff" * 9 + b"\x01" + message[place:]
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def extreme_fields(fleet: Fleet, count: int) -> list[Tally]:
    """Well-formed messages with extreme values: hypothesis draws them and shrinks what is answered wrongly."""
    release = open_release(fleet.stack.releases, fleet.release, verify=False)
    vocabulary, limits = release.vocabulary, release.config.serve
    kinds: list[tuple[str, str, Any, Any]] = [
        (fleet.gateway, "CandidateService/GetCandidates", wrong.candidate_requests(vocabulary),
         wrong.candidates_code(vocabulary, limits)),
        (fleet.signals, "SignalService/AppendEvents", wrong.append_requests(), wrong.append_code),
        (fleet.signals, "SignalService/GetHistories", wrong.history_requests(release.number),
         wrong.histories_code(release.number, vocabulary.surfaces)),
    ]  # fmt: skip
    return [_extreme(*kind, count // len(kinds)) for kind in kinds]


def _extreme(
    address: str, path: str, drawn: st.SearchStrategy[Any], expected: Callable[[Any], grpc.StatusCode], count: int
) -> Tally:
    tally = Tally(f"extreme fields of {path}")
    loop = asyncio.new_event_loop()

    async def ask(call: Callable[..., Any], requests: Sequence[Any]) -> None:
        answers = [outcome(partial(call, one.SerializeToString(), timeout=CALL_S)) for one in requests]
        for one, (code, details) in zip(requests, await asyncio.gather(*answers), strict=True):
            note(tally, code, details, frozenset({expected(one)}), f"{path} {str(one)[:300]!r}")

    async def opened() -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address)

    channel = loop.run_until_complete(opened())
    call = channel.unary_unary(f"/pinrec.v1.{path}")

    @settings(
        max_examples=max(1, count // AT_ONCE),
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(drawn, min_size=AT_ONCE, max_size=AT_ONCE))
    def every(requests: list[Any]) -> None:
        loop.run_until_complete(ask(call, requests))

    try:
        every()
    finally:
        loop.run_until_complete(channel.close())
        loop.close()
    return tally


async def outcome(call: Callable[[], Awaitable[Any]]) -> tuple[grpc.StatusCode, str]:
    """Code and details; a call that failed for load is made again, a few times."""
    for pause_s in (0.05, 0.2, 0.5, 0.0):
        try:
            await call()
            return _CODES.OK, ""
        except grpc.aio.AioRpcError as error:
            if error.code() not in _LOAD or not pause_s:
                return error.code(), error.details() or ""
        await asyncio.sleep(pause_s)
    raise AssertionError("the last pause is 0")


def note(tally: Tally, code: grpc.StatusCode, details: str, right: frozenset[grpc.StatusCode], what: str) -> None:
    """Count a call; keep it if its code or its words are wrong."""
    tally.tried += 1
    tally.codes[code.name] += 1
    if code not in right or _LEAKS.search(details):
        tally.wrong.append(f"{code.name} {details[:200]!r} to {what}")


async def _at_once(count: int, one: Callable[[int], Awaitable[None]], workers: int = AT_ONCE) -> None:
    """Call `one` with 0 to `count` - 1, so many at a time."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await one(number)

    await asyncio.gather(*(worker() for _ in range(workers)))
