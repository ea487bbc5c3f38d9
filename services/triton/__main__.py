"""Fetch, find or start the Triton server.

python -m services.triton install     # into .tools/triton of the repository; does nothing if it is there
python -m services.triton locate      # print which tritonserver `pinrec up` would start
python -m services.triton serve       # a memory host: only embed_items and retrieve
"""

from __future__ import annotations

import os
from pathlib import Path

import click

from services.triton.command import TritonOptions, clean_shm, command, environment
from services.triton.tools import TOOLS, TritonMissing
from services.triton.tools import install as install_into
from services.triton.tools import locate as locate_server


@click.group()
def main() -> None:
    """Fetch, find or start the Triton server."""


@main.command()
def install() -> None:
    """Unpack the Triton server into .tools/triton, unless it is there."""
    try:
        fetched = install_into(TOOLS)
    except TritonMissing as error:
        raise click.ClickException(error.message) from error
    click.echo(f"Triton {'fetched into' if fetched else 'is in'} {TOOLS}")


@main.command()
def locate() -> None:
    """Print the tritonserver that would be started."""
    try:
        click.echo(locate_server().executable)
    except TritonMissing as error:
        raise click.ClickException(error.message) from error


@main.command()
@click.option(
    "--releases",
    default="work/releases",
    show_default=True,
    envvar="PINREC_RELEASES",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with serving.json and the numbered releases.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("embed_items", "retrieve"),
    show_default=True,
    help="Stage to hold; repeat for several.",
)
@click.option(
    "--items",
    default="",
    envvar="PINREC_ITEMS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Item service that the index follows; empty = none.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--grpc-port", default=8001, show_default=True, help="Where the ensemble's Triton calls.")
@click.option("--http-port", default=8000, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
def serve(**chosen: object) -> None:
    """Start a Triton that holds single stages, for a stack elsewhere.

    A memory host keeps the ID tables and the index: `pinrec up --embed-items HOST:PORT --retrieve HOST:PORT` then opens
    none of its own. Runs in this process, until SIGTERM.
    """
    options = TritonOptions(**chosen)  # type: ignore[arg-type]
    clean_shm(options)
    try:
        server = locate_server()
    except TritonMissing as error:
        raise click.ClickException(error.message) from error
    os.execve(server.executable, command(server, options), environment(server, options))


if __name__ == "__main__":
    main(prog_name="python -m services.triton")
