"""Typed errors of a command or process as one line on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from pinrec_core.errors import PinrecError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What a user can mend ends the process with `Error: ...` and exit code 1; a bug keeps its traceback."""
    try:
        yield
    except PinrecError as error:
        raise click.ClickException(error.message) from error
