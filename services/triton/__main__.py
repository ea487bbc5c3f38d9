"""Fetch, find or start the Triton server.

python -m services.triton install     # into .tools/triton of the repository; does nothing if it is there
python -m services.triton locate      # print which tritonserver `pinrec up` would start
python -m services.triton serve       # start it and keep it: what a Triton container runs
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from services.common.logs import configure_logging, log_format_option
from services.common.one_line import one_line_errors
from services.triton.command import TritonOptions
from services.triton.keeper import Keeper, KeeperOptions
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
    default=("pinrec",),
    show_default=True,
    help="What to serve: pinrec is the whole path; or single stages, for a memory host. Repeat for several.",
)
@click.option(
    "--signals",
    default="",
    envvar="PINREC_SIGNALS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Signal service, which fetch_signals asks.",
)
@click.option(
    "--items",
    default="",
    envvar="PINREC_ITEMS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Item service that the index follows; empty = none.",
)
@click.option(
    "--embed-items",
    default="",
    envvar="PINREC_EMBED_ITEMS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Triton of a memory host that holds the ID embedding; empty = here.",
)
@click.option(
    "--retrieve",
    default="",
    envvar="PINREC_RETRIEVE",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Triton of a memory host that holds the index; empty = here.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--grpc-port", default=8001, show_default=True, help="Where the gateway or the ensemble's Triton calls.")
@click.option("--http-port", default=8000, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
@click.option(
    "--health-port", default=8003, show_default=True, help="HTTP: /livez, /readyz, and /metrics of its keeper."
)
@click.option("--linger", "linger_s", default=0.0, show_default=True, help="Seconds between not ready and the end.")
@log_format_option
def serve(health_port: int, linger_s: float, log_format: str, **chosen: object) -> None:
    """Start a Triton and keep it until SIGTERM: what a Triton container runs.

    A canary a second goes through what it serves. A stage whose process has died or is stuck is loaded again; if that
    fails, or the server ends or no longer answers, this process ends with exit code 1. SIGTERM drains: /readyz says
    503, and after --linger seconds the server is stopped.

    A memory host serves --model embed_items --model retrieve; the Triton with the whole path is then given
    --embed-items HOST:PORT --retrieve HOST:PORT and opens none of its own.
    """
    configure_logging("triton", log_format)
    options = TritonOptions(**chosen)  # type: ignore[arg-type]
    with one_line_errors():
        sys.exit(Keeper(locate_server(), options, KeeperOptions(health_port, linger_s)).run())


if __name__ == "__main__":
    main(prog_name="python -m services.triton")
