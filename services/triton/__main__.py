"""Fetch or find the Triton server.

python -m services.triton install     # into .tools/triton of the repository; does nothing if it is there
python -m services.triton locate      # print which tritonserver `pinrec up` would start
"""

from __future__ import annotations

import click

from services.triton.tools import TOOLS, TritonMissing
from services.triton.tools import install as install_into
from services.triton.tools import locate as locate_server


@click.group()
def main() -> None:
    """Fetch or find the Triton server."""


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


if __name__ == "__main__":
    main(prog_name="python -m services.triton")
