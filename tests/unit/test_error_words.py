"""Typed errors as text in a Triton response, and back."""

from __future__ import annotations

import pytest

from pinrec_core import errors
from pinrec_core.serving.error_words import UNEXPECTED, error_from_text, error_of, error_text

ERRORS = [
    errors.PinrecError("something broke"),
    errors.InvalidRequest("surface", "moon", "one of ['home']"),
    errors.InvalidRelease("release 3: file index/index.faiss is missing"),
    errors.ReleaseNotOpen(3, (1, 2)),
    errors.ReleaseNotOpen(1, ()),
    errors.DeadlineExceeded("the deadline passed before generate"),
    errors.Overloaded("64 requests are in flight"),
    errors.Unavailable("the serving stages do not answer"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}")
@pytest.mark.parametrize("wrap", ["{}", "in ensemble 'pinrec', {}", "[StatusCode.INTERNAL] in ensemble 'a', {}"])
def test_round_trip(error, wrap):
    found = error_of(wrap.format(error_text(error)))
    assert type(found) is type(error)
    assert found.message == error.message
    assert str(found) == str(error)


def test_fields_of_rebuilt_errors():
    not_open = error_of("[RELEASE_NOT_OPEN] release 12 is not open; open: [1, 2]")
    assert not_open.release == 12
    invalid = error_of(error_text(errors.InvalidRequest("budget", "like", "outcomes ['save']")))
    assert invalid.field == "budget"


def test_text_without_a_code_is_not_ours():
    assert error_of("in ensemble 'pinrec', Stub process 'generate_0_0' is not healthy.") is None
    assert error_of("[SOMETHING_ELSE] x") is None


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("Server is stopping, scheduler for model has stopped", "StatusCode.UNAVAILABLE", errors.Unavailable),
        ("Request for unknown model: 'pinrec' is not found", "StatusCode.NOT_FOUND", errors.Unavailable),
        ("Stub process 'generate_0_0' is not healthy.", "StatusCode.INTERNAL", errors.Unavailable),
        ("Deadline Exceeded", "StatusCode.DEADLINE_EXCEEDED", errors.DeadlineExceeded),
        ("KeyError: 1\n\nAt:\n  /srv/models/generate/1/model.py(20)", "StatusCode.INTERNAL", errors.PinrecError),
        ("", "", errors.PinrecError),
    ],
)
def test_tritons_own_errors_are_typed_and_say_nothing_of_the_server(text, status, expected):
    error = error_from_text(text, status)
    assert type(error) is expected
    assert "/srv" not in error.message
    assert "Stub" not in error.message


def test_our_code_wins_over_the_status():
    error = error_from_text("in ensemble 'pinrec', [DEADLINE_EXCEEDED] too late", "StatusCode.INTERNAL")
    assert type(error) is errors.DeadlineExceeded


def test_unexpected_says_no_more_than_where():
    assert UNEXPECTED == "internal error of a serving stage"
