"""One table from typed errors to gRPC codes, complete, and nothing else reaches a client."""

import inspect

import grpc
import pytest

from pinrec_core import errors
from services.common.errors import INTERNAL_MESSAGE, STATUS_OF, status_of

TYPED = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.PinrecError)}


def test_every_typed_error_is_in_the_table():
    assert set(STATUS_OF) == TYPED


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.InvalidRequest("n", 0, "1 to 5"), "INVALID_ARGUMENT", "n has value 0; allowed: 1 to 5"),
        (errors.InvalidRelease("release 2: x.npy is missing"), "FAILED_PRECONDITION", "release 2: x.npy is missing"),
        (errors.ReleaseNotOpen(2, (1,)), "UNAVAILABLE", "release 2 is not open; open: [1]"),
        (errors.DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "late"),
        (errors.Overloaded("full"), "RESOURCE_EXHAUSTED", "full"),
        (errors.Unavailable("down"), "UNAVAILABLE", "down"),
        (errors.Unauthenticated("who?"), "UNAUTHENTICATED", "who?"),
        (errors.NotAllowed("no"), "PERMISSION_DENIED", "no"),
        (
            errors.LimitExceeded("5 requests per second", 0.25),
            "RESOURCE_EXHAUSTED",
            "the limit of this client is 5 requests per second; try again in 0.25 s",
        ),
        (errors.PinrecError("mixed"), "INTERNAL", "mixed"),
    ],
)
def test_code_and_words_of_each_error(error, code, message):
    assert status_of(error) == (grpc.StatusCode[code], message)


def test_what_nobody_raised_on_purpose_is_hidden_and_logged(caplog):
    error = FileNotFoundError("/secret/path/tables.bin")
    assert status_of(error) == (grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)
    assert caplog.records[0].exc_info[1] is error


def test_a_value_of_a_megabyte_is_not_sent_back():
    """It would be a header that no client takes: the call would fail as RESOURCE_EXHAUSTED, by the client itself."""
    code, message = status_of(
        errors.InvalidRequest("surface", "x" * 1_000_000, "one of ['home']").within("requests[3]")
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message == f"requests[3].surface has value '{'x' * 199}... (1000002 characters); allowed: one of ['home']"


@pytest.mark.parametrize("letter", ["x", "\u00e9", "\U0001f600"])
def test_no_message_is_longer_than_a_header(letter):
    _, message = status_of(errors.Unavailable(letter * 100_000))
    assert message.endswith("...")
    assert 1_990 <= len(message.encode()) <= 2_000
    _, message = status_of(errors.Unavailable(letter * 400))
    assert message == letter * 400
