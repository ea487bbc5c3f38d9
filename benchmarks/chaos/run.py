"""Everything that is done to a running stack: faults, overload, hostile input; what callers saw, and how it ended.

    python -m benchmarks.chaos.run --work work/chaos --report docs/figures [--only overload]

Prints a row for each with its bar; exit code 1 if one is missed. Each part writes its own file under --report, so that
one can be run again alone. Root is needed to fill disks and to lose packets, in namespaces of this process's own;
without it these rows say that they were skipped.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from benchmarks.chaos import faults, links, malformed, overload
from benchmarks.chaos.sandbox import enter
from benchmarks.chaos.table import Row, finish, save
from benchmarks.chaos.world import World, make_world

PARTS: dict[str, Callable[[World, Path], Sequence[Row]]] = {
    "overload": overload.measure,
    "faults": faults.measure,
    "network": links.measure,
    "malformed": malformed.measure,
}
"""Each: the world and a folder of its own -> its rows."""


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for chaos-PART.json.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Run this part; repeat for several.")
def main(work: Path, report: Path | None, only: tuple[str, ...]) -> None:
    """Run the parts and print the table."""
    enter("benchmarks.chaos.run")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leave every context, and with them no process behind
    world = make_world(work / "world")
    rows: list[Row] = []
    for name in only or PARTS:
        done = PARTS[name](world, work / name)
        rows += done
        if report is not None:
            save(done, report / f"chaos-{name}.json", f"make chaos ONLY={name}")
    finish(rows)


if __name__ == "__main__":
    main()
