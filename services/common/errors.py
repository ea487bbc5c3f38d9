"""The one table from our typed errors to gRPC status codes, and the only place where an exception meets a client."""

from __future__ import annotations

import logging

import grpc

from pinrec_core import errors

STATUS_OF: dict[type[errors.PinrecError], grpc.StatusCode] = {
    errors.PinrecError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidConfig: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidData: grpc.StatusCode.INVALID_ARGUMENT,
    errors.InvalidRelease: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReleaseRefused: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReleasesLocked: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotSetUp: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ReleaseNotOpen: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.NotAllowed: grpc.StatusCode.PERMISSION_DENIED,
    errors.LimitExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Every class of `pinrec_core/errors.py`; a test holds the two to each other."""

INTERNAL_MESSAGE = "internal error"
"""All that a client learns of an exception that we did not raise on purpose: no traceback, no path."""

MAX_MESSAGE_BYTES = 2_000
"""Of a message in UTF-8. It travels in a header, percent-encoded (up to three times as long), and clients take 8 KiB of
headers: a longer one would reach them as an error of their own connection instead of ours."""

log = logging.getLogger(__name__)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str]:
    """Status code and message for a client. What is not a PinrecError is hidden; INTERNAL is logged with its causes."""
    code, message = grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE
    if isinstance(error, errors.PinrecError):
        code, message = STATUS_OF[type(error)], _cut(error.message)
    if code is grpc.StatusCode.INTERNAL:
        log.error("internal error", exc_info=error)
    return code, message


def _cut(message: str) -> str:
    encoded = message.encode()
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return message
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
