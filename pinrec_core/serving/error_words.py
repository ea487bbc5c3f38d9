"""Typed errors as text in a Triton response, and back: the code word travels in brackets before the message."""

from __future__ import annotations

import re

from pinrec_core.errors import (
    BY_CODE,
    DeadlineExceeded,
    InvalidRelease,
    InvalidRequest,
    PinrecError,
    ReleaseNotOpen,
    Unavailable,
)

UNEXPECTED = "internal error of a serving stage"
"""All that leaves a stage of an exception that we did not raise on purpose; the traceback is in its log."""

_CODES = (PinrecError.code, InvalidRequest.code, InvalidRelease.code, ReleaseNotOpen.code, *BY_CODE)
_WITH_CODE = re.compile(rf"\[({'|'.join(_CODES)})\] (.*)", re.DOTALL)
_NOT_OPEN = re.compile(r"release (\d+) is not open; open: \[([\d, ]*)\]")


def error_text(error: PinrecError) -> str:
    """An error as it travels in a response: `[CODE] message`."""
    return f"[{error.code}] {error.message}"


def error_from_text(text: str, status: str) -> PinrecError:
    """The error behind a failed call of a Triton model.

    A `text` without one of our codes is Triton's own: `status` ("StatusCode.UNAVAILABLE") then decides, and the text is
    not shown, since it may hold paths.
    """
    return error_of(text) or _server_error(text, status)


def error_of(text: str) -> PinrecError | None:
    """What a stage raised, out of a text that Triton may have wrapped ("in ensemble 'pinrec', [CODE] ...").

    None if the text holds none of our codes.
    """
    found = _WITH_CODE.search(text)
    if found is None:
        return None
    code, message = found.groups()
    if code == ReleaseNotOpen.code:
        return _release_not_open(message)
    if code == InvalidRequest.code:
        return _invalid_request(message)
    if code == InvalidRelease.code:
        return InvalidRelease(message)
    return BY_CODE.get(code, PinrecError)(message)


def _server_error(text: str, status: str) -> PinrecError:
    status = status.removeprefix("StatusCode.")
    if status == DeadlineExceeded.code:
        return DeadlineExceeded("the deadline passed while the serving stages worked")
    # NOT_FOUND: Triton on its way down forgets its models. "not healthy": a stage's process has died.
    if status in ("UNAVAILABLE", "NOT_FOUND") or "is not healthy" in text:
        return Unavailable("the serving stages do not answer")
    return PinrecError(UNEXPECTED)


def _release_not_open(message: str) -> PinrecError:
    found = _NOT_OPEN.search(message)
    if found is None:
        return Unavailable(message)
    return ReleaseNotOpen(int(found[1]), tuple(int(n) for n in found[2].split(",") if n.strip()))


def _invalid_request(message: str) -> InvalidRequest:
    field, _, rest = message.partition(" has value ")
    value, _, allowed = rest.partition("; allowed: ")
    error = InvalidRequest(field, value, allowed)
    error.message = message  # the value was already quoted when the error was first raised
    error.args = (message,)
    return error
