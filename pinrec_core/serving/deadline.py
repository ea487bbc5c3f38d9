"""The deadline that travels with a request (gRPC deadlines and cancellation do not reach an ensemble's steps)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

NS_PER_MS = 1_000_000


def deadline_of(message: Any, arrival_ns: int) -> int:
    """When a message's time is up, in nanoseconds of this host's monotonic clock.

    A message without `deadline_ns`, or with 0 (it comes from another host, whose clock differs), counts `remaining_ms`
    from its arrival.
    """
    deadline_ns: int = getattr(message, "deadline_ns", 0)
    return deadline_ns or arrival_ns + message.remaining_ms * NS_PER_MS


def with_deadline(message: Any, arrival_ns: int) -> Any:
    """The message with its `deadline_ns` filled in, so that a stage need not know where it came from."""
    if getattr(message, "deadline_ns", None) != 0:
        return message
    return replace(message, deadline_ns=deadline_of(message, arrival_ns))
