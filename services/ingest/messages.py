"""Kafka messages that hold one `pinrec.v1.Event` each."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from pinrec_core.errors import InvalidRequest
from pinrec_core.signals.events import Event
from services.proto import signals_pb2
from services.signals.validate import event_of


def _from_proto(value: bytes) -> signals_pb2.Event:
    try:
        return signals_pb2.Event.FromString(value)
    except DecodeError as error:
        raise InvalidRequest("message", value[:40], "a serialized pinrec.v1.Event") from error


def _from_json(value: bytes) -> signals_pb2.Event:
    try:
        return json_format.Parse(value, signals_pb2.Event())
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidRequest("message", value[:40], "pinrec.v1.Event as JSON") from error


READERS: dict[str, Callable[[bytes], signals_pb2.Event]] = {"proto": _from_proto, "json": _from_json}
"""How a message's bytes become an event, by the name of the format."""


def read_event(value: bytes | None, form: str) -> tuple[Event, signals_pb2.Event]:
    """The event of a message: what makes it the same as another, and what is sent on.

    Raises InvalidRequest for what the signal service would never take. An event without an id gets one from its row and
    the number of equal rows before it *in one call*. How a topic is cut into calls changes with each delivery, so equal
    rows count as one event here; the first of the pair compares equal for them.
    """
    if value is None:
        raise InvalidRequest("message", None, "an event; a message without a value has none")
    event = READERS[form](value)
    return event_of(event)._replace(text=""), event
