"""A table of bars: what was asked, what was measured, and whether it was met."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True)
class Row:
    """One line: `met` is None where there is a figure but no bar. `figures` are what was measured, for the JSON."""

    what: str
    bar: str
    measured: str
    met: bool | None
    figures: dict[str, Any] = field(default_factory=dict)


MARKS = {True: "met", False: "MISSED", None: "-"}


def show(row: Row) -> Row:
    """Print one row as soon as it is known."""
    click.secho(
        f"{row.what}\n  bar       {row.bar}\n  measured  {row.measured}\n  {MARKS[row.met]}", bold=row.met is False
    )
    return row


def save(rows: Sequence[Row], path: Path, command: str) -> None:
    """Write the rows as JSON with the command, the commit and the machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    values = {"command": command, "commit": commit.stdout.strip(), "machine": machine, "rows": list(map(asdict, rows))}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


def finish(rows: Sequence[Row]) -> None:
    """Exit code 1 if a bar was missed."""
    missed = [row.what for row in rows if row.met is False]
    if missed:
        raise click.ClickException(f"{len(missed)} of {len(rows)} bars missed: {'; '.join(missed)}")
    click.echo(f"all {sum(row.met is True for row in rows)} bars met")
