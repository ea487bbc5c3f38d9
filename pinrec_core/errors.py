"""Typed errors: what a user can cause or a stage can meet. Each names the key, the value and what is allowed.

The one table from these classes to gRPC codes is `services/common/errors.py`. `code` is the word that
travels between Triton stages (`serving/error_words.py`); a message never holds a path or a traceback.
"""

from __future__ import annotations

from typing import ClassVar

MAX_SHOWN_CHARS = 200
"""Of a wrong value: enough to recognize it, so that an error never echoes a megabyte."""


class PinrecError(Exception):
    """Base of all errors that this project raises on purpose."""

    code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(PinrecError, ValueError):
    """A field of a request is wrong: the caller must change it."""

    code = "INVALID_ARGUMENT"

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} has value {_shown(value)}; allowed: {allowed}")
        self.field, self.value, self.allowed = field, value, allowed

    def within(self, place: str) -> InvalidRequest:
        """The same, of a field inside `place`."""
        return InvalidRequest(f"{place}.{self.field}", self.value, self.allowed)


class InvalidConfig(PinrecError, ValueError):
    """A configuration key is unknown or its value is not allowed."""

    code = "INVALID_ARGUMENT"


class InvalidData(PinrecError, ValueError):
    """A data folder does not keep the event-log contract."""

    code = "INVALID_ARGUMENT"


class InvalidRelease(PinrecError, ValueError):
    """A release on disk is incomplete, corrupted or does not fit together."""

    code = "FAILED_PRECONDITION"


class ReleaseRefused(PinrecError):
    """A release that is whole did not pass its try in the serving stack; the one before it stays active."""

    code = "FAILED_PRECONDITION"


class ReleasesLocked(PinrecError):
    """Another command is changing which releases are served."""

    code = "FAILED_PRECONDITION"


class NotSetUp(PinrecError):
    """The process was not started with what the call needs."""

    code = "FAILED_PRECONDITION"


class ReleaseNotOpen(PinrecError):
    """A stage was asked for a release that it does not hold open."""

    code = "RELEASE_NOT_OPEN"

    def __init__(self, release: int, opened: tuple[int, ...]) -> None:
        super().__init__(f"release {release} is not open; open: {list(opened)}")
        self.release = release


class DeadlineExceeded(PinrecError):
    """The request's time ran out before its answer was ready."""

    code = "DEADLINE_EXCEEDED"


class Overloaded(PinrecError):
    """More work in flight than admitted: refused at once rather than queued; `retry_after_s` is when to ask again."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(PinrecError):
    """A stage or store that the answer needs does not respond."""

    code = "UNAVAILABLE"


class Unauthenticated(PinrecError):
    """The caller did not say who it is, or nobody is known by what it said."""

    code = "UNAUTHENTICATED"


class NotAllowed(PinrecError):
    """The caller is known, and may not call this method."""

    code = "PERMISSION_DENIED"


class LimitExceeded(PinrecError):
    """The caller has used up what it may ask; `retry_after_s` is when it may ask again."""

    code = "RESOURCE_EXHAUSTED"

    def __init__(self, limit: str, retry_after_s: float) -> None:
        super().__init__(f"the limit of this client is {limit}; try again in {retry_after_s:.3g} s")
        self.retry_after_s = retry_after_s


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}... ({len(text)} characters)"


BY_CODE: dict[str, type[PinrecError]] = {cls.code: cls for cls in (DeadlineExceeded, Overloaded, Unavailable)}
