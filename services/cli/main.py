"""`pinrec`: one group whose verbs are imported only when they are called.

`pinrec --help` therefore starts in a fraction of a second and needs neither torch nor faiss nor pyarrow, and a machine
that only talks to a gateway needs none of them at all.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import click

from pinrec_core import __version__
from services.common.one_line import one_line_errors
from services.common.threads import sleep_when_idle

sleep_when_idle()


class Verb(NamedTuple):
    """Where a verb lives and the line that `pinrec --help` shows for it."""

    module: str
    summary: str
    is_background: bool = False
    """Works beside a stack that serves on the same machine, and leaves the cores to it."""


VERBS = {
    "data": Verb("services.cli.data", "Get, make and check event logs."),
    "train": Verb("services.cli.train", "Train a model on an event log."),
    "evaluate": Verb("services.cli.train", "Measure a trained model on users it has not seen."),
    "export": Verb("services.cli.export", "Publish a trained model as the next release."),
    "release": Verb("services.cli.release", "Publish, list, verify, activate, roll back releases.", True),
    "up": Verb("services.cli.up", "Start signals, items, Triton and gateway on this machine."),
    "demo": Verb("services.cli.demo", "The whole story on one machine, told with the other verbs."),
    "recommend": Verb("services.cli.recommend", "Ask for one user's candidates and print them."),
    "events": Verb("services.cli.events", "Append events to a user's history, or look at it."),
    "signals": Verb("services.cli.signals", "Look at, back up and restore the realtime view."),
    "items": Verb("services.cli.items", "Add items to what is served, or delete them."),
    "token": Verb("services.cli.token", "Make, list and revoke the tokens that clients show."),
}
"""In the order in which one needs them; each module has a click command of the verb's name."""

EXTRA_OF_MODULE = {
    "torch": "cpu",
    "faiss": "cpu",
    "safetensors": "cpu",
    "matplotlib": "train",
    "locust": "bench",
    "duckdb": "batch",
    "fsspec": "batch",
    "pyspark": "spark",
}
"""Modules that the bare package does without, and the extra that brings each."""


BACKGROUND_NICE = 10
"""A tenth of a core that somebody else wants too."""


class LazyGroup(click.Group):
    """Imports a verb's module when the verb is called, and turns our typed errors into one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command, imported now; None for a name that is not in the table."""
        if cmd_name not in VERBS:
            return None
        command: click.Command = getattr(importlib.import_module(VERBS[cmd_name].module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, since asking each command for its help would import it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.summary) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; PinrecError becomes `Error: ...` on stderr and exit code 1."""
        with one_line_errors(), _missing_extras():
            return super().invoke(ctx)


@contextmanager
def _missing_extras() -> Iterator[None]:
    """A module that the bare package does without is named with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_MODULE.get(error.name or "")
        if extra is None:
            raise
        needed = f"this verb needs {error.name}, which is not installed: pip install 'pinrec[{extra}]'"
        raise click.ClickException(needed) from error


@click.group(cls=LazyGroup, name="pinrec", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pinrec")
def main() -> None:
    """PinRec: outcome-conditioned, windowed multi-token generative retrieval.

    An event log becomes a trained model (data, train, evaluate), a published release (export, release) and a stack that
    answers with candidates split over outcomes as a budget says (up, recommend, events, items).
    `pinrec VERB --help` is each verb's documentation.
    """


def run() -> None:
    """The process `pinrec`."""
    verb = VERBS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if verb is not None and verb.is_background:
        os.nice(BACKGROUND_NICE)
    main(prog_name="pinrec")


if __name__ == "__main__":
    run()
