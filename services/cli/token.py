"""`pinrec token`: make, list and revoke the tokens that clients show to the services."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from pinrec_core.errors import InvalidConfig
from services.common.limits import Limits
from services.common.tokens import SCOPES, Client, checked_name, digest_of, new_token, read_clients, write_clients

tokens_option = click.option(
    "--tokens",
    "path",
    envvar="PINREC_TOKENS",
    default="tokens.toml",
    show_default=True,
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The tokens file, as the servers' --tokens.",
)


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that clients show to the services.

    The file holds hashes, scopes and limits, never a token. Servers started with it take up a change within a second.
    """


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    help="What the client may do; repeat for several. read: candidates, histories, status. append: events, items. "
    "admin: try a release, make a backup. Kept if not given.",
)
@click.option("--requests-per-second", type=float, help="Refused above it; 0 = no limit. Kept if not given.")
@click.option("--burst", type=int, help="How many may come at once; 0 = those of one second. Kept if not given.")
@click.option("--requests-per-day", type=int, help="Refused above it, by days of UTC; 0 = no limit. Kept if not given.")
@tokens_option
def new(name: str, scopes: tuple[str, ...], path: Path, **limits: Any) -> None:
    """Add a token of client NAME, which may be new, and print it: once, to stdout.

    Tokens that the client has stay valid, so that it can change over without a gap; then `pinrec token revoke NAME
    --old` ends them. Limits count in each process, over all tokens of the client.

    \b
    pinrec token new ranking --scope read --requests-per-second 500 > ranking.token
    """
    clients = read_clients(path) if path.exists() else {}
    known = clients.get(checked_name(name), Client(name, (), ()))
    if not (scopes or known.scopes):
        raise InvalidConfig(f"--scope is missing; allowed for a new client: one or more of {list(SCOPES)}")
    made = new_token()
    given = {key: value for key, value in limits.items() if value is not None}
    clients[name] = replace(
        known,
        scopes=scopes or known.scopes,
        digests=(*known.digests, digest_of(made)),
        limits=Limits(**{**vars(known.limits), **given}),
    )
    write_clients(path, clients)
    click.echo(made)


@token.command(name="list")
@tokens_option
def list_command(path: Path) -> None:
    """Show each client with its scopes, how many tokens it has, and its limits."""
    click.echo(f"{'client':<24} {'scopes':<20} {'tokens':>6}  limits")
    for client in read_clients(path).values():
        limits = [f"{key} {value:g}" for key, value in vars(client.limits).items() if value]
        click.echo(
            f"{client.name:<24} {','.join(client.scopes):<20} {len(client.digests):>6}  {', '.join(limits) or 'none'}"
        )


@token.command()
@click.argument("name")
@click.option("--old", is_flag=True, help="Only the tokens before the newest.")
@tokens_option
def revoke(name: str, old: bool, path: Path) -> None:
    """End the tokens of client NAME."""
    clients = read_clients(path)
    if name not in clients:
        raise InvalidConfig(f"client has value {name!r}; allowed: one of {list(clients)}")
    count = len(clients[name].digests)
    if old:
        clients[name] = replace(clients[name], digests=clients[name].digests[-1:])
    else:
        del clients[name]
    write_clients(path, clients)
    ended = count - 1 if old else count
    click.echo(f"tokens of {name} ended: {max(ended, 0)}")
