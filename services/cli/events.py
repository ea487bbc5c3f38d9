"""`pinrec events`: append to a user's history through the signal service, and look at what it holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path

import click
import numpy as np

from pinrec_core.errors import InvalidRelease, InvalidRequest
from pinrec_core.messages import Status
from pinrec_core.release import Release, open_release, serving_state
from pinrec_core.schema import ITEM_TYPE_NAMES, SEARCH_ACTION, ItemType, Vocabulary
from services.cli.options import INT64, releases_option, signals_option
from services.cli.titles import release_titles
from services.common.client import connect
from services.proto import signals_pb2
from services.proto.signals_pb2_grpc import SignalServiceStub

TIMEOUT_S = 10.0
_MAX_DIGITS = 18
"""Of a time in milliseconds: more do not fit an int64."""


@click.group()
def events() -> None:
    """Append events to a user's history, or look at it.

    What is appended is in the history of that user's next request: the signal service answers once it is durable.
    """


@events.command()
@click.option("--user", "user_id", required=True, type=INT64, help="User id.")
@click.option("--item", "item_ids", multiple=True, type=INT64, help="Pin that was engaged with; repeat for several.")
@click.option("--text", default="", help="A search query instead of a pin; its action is `search`.")
@click.option("--action", default="", help="What the user did, e.g. save or click.")
@click.option("--surface", required=True, help="Where, e.g. home.")
@click.option("--at", default="now", show_default=True, help="now, Unix milliseconds, or ISO 8601 (UTC if bare).")
@releases_option
@signals_option
def append(
    user_id: int, item_ids: tuple[int, ...], text: str, action: str, surface: str, at: str, root: Path, address: str
) -> None:
    """Append events of one user and wait until they are durable.

    Any action and surface is stored; one that the active release does not know is warned of.

    \b
    pinrec events append --user 12 --item 50 --item 181 --action save --surface home
    pinrec events append --user 12 --text "space opera" --surface search --at 2026-07-01T12:00:00
    """
    if bool(item_ids) == bool(text):
        raise click.UsageError("give either --item (once or more) or --text")
    if item_ids and not action:
        raise click.UsageError("--item needs an --action")
    timestamp_ms = parse_time(at)
    event = signals_pb2.Event(user_id=user_id, surface=surface, timestamp_ms=timestamp_ms)
    event.item_type = ITEM_TYPE_NAMES[ItemType.SEARCH_QUERY if text else ItemType.PIN]
    event.action = SEARCH_ACTION if text else action
    event.text = text
    made = [_with_item(event, item_id) for item_id in item_ids or (0,)]  # 0: the service hashes a search query's text
    with connect(address, SignalServiceStub) as stub:
        reply = stub.AppendEvents(signals_pb2.AppendEventsRequest(events=made), timeout=TIMEOUT_S)
    noun = "event" if reply.acknowledged == 1 else "events"
    click.echo(f"{reply.acknowledged} {noun} of user {user_id} durable, with the time {shown_time(timestamp_ms)}")
    warn_of_unknown_words(root, event.action, event.surface)


def warn_of_unknown_words(root: Path, action: str, surface: str) -> None:
    """Say on stderr which word the model will not tell from any other unknown one; without a release, nothing."""
    try:
        active = open_release(root, serving_state(root).active, verify=False)
    except InvalidRelease:
        return
    for option, name, known in (
        ("--action", action, active.vocabulary.actions),
        ("--surface", surface, active.vocabulary.surfaces),
    ):
        if name not in known:
            words = f"{option} {name!r} is unknown to release {active.number}, which knows {list(known)}"
            click.echo(f"warning: {words}: stored, but the model sees it as unknown", err=True)


def _with_item(event: signals_pb2.Event, item_id: int) -> signals_pb2.Event:
    made = signals_pb2.Event(item_id=item_id)
    made.MergeFrom(event)
    return made


@events.command()
@click.option("--user", "user_id", required=True, type=INT64, help="User id.")
@click.option("--surface", default="", help="Surface of the imagined request; any if empty.")
@click.option("-n", "count", default=20, show_default=True, type=click.IntRange(min=1), help="Newest events to show.")
@releases_option
@signals_option
def history(user_id: int, surface: str, count: int, root: Path, address: str) -> None:
    """Show the history that the active release sees for a user, newest first, with the release's titles."""
    active = open_release(root, serving_state(root).active, verify=False)
    vocabulary = active.vocabulary
    code = vocabulary.request_surface_code(surface) if surface else 0
    now_ms = int(time.time() * 1000)
    wanted = signals_pb2.HistoryRequest(user_id=user_id, surface=code, request_time_ms=now_ms)
    with connect(address, SignalServiceStub) as stub:
        request = signals_pb2.GetHistoriesRequest(release=active.number, requests=[wanted])
        reply = stub.GetHistories(request, timeout=TIMEOUT_S).histories[0]
    click.echo(f"user {user_id}: {reply.history_length} events, {reply.realtime_events} newer than the batch view")
    if Status.REALTIME_UNAVAILABLE in Status(reply.status):
        click.echo("warning: the realtime view cannot be read: newer events are missing here", err=True)
    for line in history_lines(reply, active, count):
        click.echo(line)


def history_lines(reply: signals_pb2.History, release: Release, count: int) -> list[str]:
    """The newest `count` events as a table, newest first."""
    item_ids = np.frombuffer(reply.item_ids, dtype="<i8")[::-1][:count]
    actions = np.frombuffer(reply.actions, dtype="<i4")[::-1][:count]
    surfaces = np.frombuffer(reply.surfaces, dtype="<i4")[::-1][:count]
    times = np.frombuffer(reply.timestamps_ms, dtype="<i8")[::-1][:count]
    titles = release_titles(release.path, item_ids.tolist())
    return [
        _history_line(titles, release.vocabulary, *row)
        for row in zip(item_ids.tolist(), actions.tolist(), surfaces.tolist(), times.tolist(), strict=True)
    ]


def _history_line(
    titles: Mapping[int, str], vocabulary: Vocabulary, item_id: int, action: int, surface: int, timestamp_ms: int
) -> str:
    action_name, surface_name = name_of(vocabulary.actions, action), name_of(vocabulary.surfaces, surface)
    line = f"{shown_time(timestamp_ms)}  {action_name:<12} {surface_name:<12} {item_id:>20}  {titles.get(item_id, '')}"
    return line.rstrip()


def name_of(names: tuple[str, ...], code: int) -> str:
    """Name of a vocabulary code (index + 1), `unknown` for 0."""
    return names[code - 1] if code else "unknown"


def parse_time(text: str) -> int:
    """Unix milliseconds of `now`, of milliseconds, or of an ISO 8601 time (UTC if it names no zone).

    Raises InvalidRequest.
    """
    if text == "now":
        return int(time.time() * 1000)
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidRequest("--at", text, "now, Unix milliseconds, or a time like 2026-07-01T12:00:00") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return int(moment.timestamp() * 1000)


def shown_time(timestamp_ms: int) -> str:
    """A time in UTC, to the second."""
    return datetime.fromtimestamp(timestamp_ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
