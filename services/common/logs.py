"""Log lines of the services: what is known of the call that is being served stands in each, and failures are told.

Facts live in a context variable: a call is a task of its own, and so is each request of a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import click
import grpc

from pinrec_core.serving.log_lines import LOG_FORMATS, VARIABLE, JsonLines, TextLines, start_logging

TOLD = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Codes of failed calls that have a line: an SRE's business. INTERNAL has one with its traceback (`errors.py`), and
what clients do wrong is theirs."""

QUIET_S = 1.0
"""Between two lines of the same method and code: an outage or an overload must not flood the log."""

MAX_FACT_CHARS = 128

log = logging.getLogger(__name__)

_FACTS: ContextVar[Mapping[str, str]] = ContextVar("facts", default={})  # noqa: B039  replaced, never changed

Command = TypeVar("Command", bound=Callable[..., Any])


def log_format_option(command: Command) -> Command:
    """Click option `--log-format`, which arrives as `log_format`."""
    option = click.option(
        "--log-format",
        type=click.Choice(LOG_FORMATS),
        default="text",
        show_default=True,
        envvar=VARIABLE,
        show_envvar=True,
        help="Log lines for people, or one JSON object a line.",
    )
    return option(command)


def configure_logging(process: str, log_format: str) -> None:
    """Log lines of a process to stderr."""
    start_logging(JsonLines(process, facts_of_call) if log_format == "json" else TextLines(facts=facts_of_call))


def note_call(**facts: str) -> None:
    """Say of the call that is being served what its log lines and spans should hold, for example its request_id.

    Callers choose some of it: values are cut at `MAX_FACT_CHARS`, and one that could break a line is escaped.
    """
    cut = {name: value[:MAX_FACT_CHARS] for name, value in facts.items()}
    _FACTS.set({**_FACTS.get(), **{name: v if v.isprintable() else ascii(v) for name, v in cut.items()}})


def facts_of_call() -> Mapping[str, str]:
    """What was noted of the call that is being served here."""
    return _FACTS.get()


class FailedCalls:
    """Tells of calls that failed: one line a second for each method and code, with how many had none."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._told_s: dict[tuple[str, str], float] = {}
        self._untold: dict[tuple[str, str], int] = {}

    def ended(self, method: str, code: grpc.StatusCode, details: str, elapsed_s: float) -> None:
        """Note the end of a call. `details` are the words that the client got."""
        if code not in TOLD:
            return
        kind, now_s = (method, code.name), self._now_s()
        if now_s - self._told_s.get(kind, -QUIET_S) < QUIET_S:
            self._untold[kind] = self._untold.get(kind, 0) + 1
            return
        self._told_s[kind] = now_s
        more = self._untold.pop(kind, 0)
        since = f"; {more} more since the last such line" if more else ""
        log.warning("%s ended as %s after %.1f ms: %s%s", method, code.name, elapsed_s * 1_000, details, since)
