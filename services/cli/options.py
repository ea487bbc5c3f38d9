"""Options that several verbs take."""

from __future__ import annotations

from pathlib import Path

import click

INT64 = click.IntRange(-(2**63), 2**63 - 1)
"""User and item ids."""

releases_option = click.option(
    "--releases",
    "root",
    envvar="PINREC_RELEASES",
    default="work/releases",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with the numbered releases and serving.json.",
)

signals_option = click.option(
    "--signals",
    "address",
    envvar="PINREC_SIGNALS",
    default="localhost:8600",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Address of the signal service.",
)

items_option = click.option(
    "--items",
    "address",
    envvar="PINREC_ITEMS",
    default="localhost:8700",
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="Address of the item service.",
)
