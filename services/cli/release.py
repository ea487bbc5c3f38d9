"""`pinrec release`: publish, list, verify, serve, go back, clear away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import click

from pinrec_core import release as releases
from pinrec_core.errors import InvalidConfig, InvalidRelease
from pinrec_core.release import Release, ServingState, list_releases, open_release, serving_state
from services.cli.options import releases_option
from services.cli.switch import RemoteGateway, Switch

Command = TypeVar("Command", bound=Callable[..., Any])
NUMBER = click.argument("number", type=click.IntRange(min=1))


@click.group()
def release() -> None:
    """Publish, list, verify, activate, roll back and remove releases.

    A release is an immutable folder with everything that serving needs; serving.json beside it says which one is active
    and which ones (two at most, during a switch) the stages hold open.
    """


def gateway_options(command: Command) -> Command:
    """Options of the verbs that change what is served."""
    for option in (
        click.option("--offline", is_flag=True, help="Ask no gateway: for releases that nothing serves yet."),
        click.option(
            "--wait",
            "wait_s",
            default=300.0,
            show_default=True,
            type=click.FloatRange(min=0),
            help="Seconds for the stages to open it, and for the old one's last request.",
        ),
        click.option(
            "--gateway",
            "gateways",
            multiple=True,
            envvar="PINREC_GATEWAYS",
            show_envvar=True,
            default=("localhost:8500",),
            show_default=True,
            metavar="HOST:PORT",
            help="A gateway that serves these releases; name every one.",
        ),
    ):
        command = option(command)
    return command


@release.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@releases_option
def publish(folder: Path, root: Path) -> None:
    """Take over FOLDER, a release that was made elsewhere, as the next number; it is held to its own manifest.

    `pinrec export` makes a release out of a trained run and publishes it itself.
    """
    click.echo(f"release {releases.publish_folder(root, folder)} published under {root}")


@release.command(name="list")
@releases_option
def list_command(root: Path) -> None:
    """Show every release with its data, size and state (active, open, previous), or why it cannot be read."""
    numbers = list_releases(root)
    if not numbers:
        click.echo(f"no release under {root}; `pinrec export` publishes one")
        return
    state = _state(root)
    click.echo(f"{'release':>7}  {'state':<8} {'variant':<7} {'data set':<20} {'newest event':<17} {'MB':>8}")
    for number in numbers:
        click.echo(f"{number:>7}  {_mark(number, state):<8} {_facts(root, number)}")


@release.command()
@NUMBER
@releases_option
def verify(number: int, root: Path) -> None:
    """Hold every file of release NUMBER to its checksum and the index to the item embedder that made it."""
    opened = open_release(root, number, verify=True)
    size = f"{len(opened.manifest['files'])} files, {_megabytes(opened):.1f} MB"
    click.echo(f"release {number} is whole: {size}, checksums and fingerprints fit")


@release.command()
@NUMBER
@releases_option
@gateway_options
def activate(number: int, root: Path, gateways: tuple[str, ...], wait_s: float, offline: bool) -> None:
    """Make release NUMBER the one that requests are served from, without failing or mixing a request.

    Verifies it, has the stages open it beside the active one, and has every --gateway send its golden requests through
    them: if too few of the expected items come back, or too late, the old release stays and the command ends with 1.
    Then the gateways flip, each when a canary came back, and the old release is closed when its last request has left.
    If anything dies on the way, the same command again completes the switch.
    """
    if offline:
        state = releases.activate(root, number)
        click.echo(f"release {state.active} is active; open: {', '.join(map(str, state.open))}")
    else:
        _switch(root, number, gateways, wait_s)


@release.command()
@releases_option
@gateway_options
def rollback(root: Path, gateways: tuple[str, ...], wait_s: float, offline: bool) -> None:
    """Activate the release that was active before this one; it is tried and the other drained as by `activate`."""
    state = serving_state(root)
    if state.previous is None:
        raise InvalidRelease(f"no release was active before release {state.active}")
    click.echo(f"back to release {state.previous}; if this is interrupted: pinrec release activate {state.previous}")
    if offline:
        releases.activate(root, state.previous)
    else:
        _switch(root, state.previous, gateways, wait_s)


@release.command()
@click.option("--keep", default=3, show_default=True, type=click.IntRange(min=1), help="How many of the newest stay.")
@releases_option
def gc(keep: int, root: Path) -> None:
    """Remove old releases, and what killed commands left; never one that is active, open or the one to roll back to."""
    gone = releases.collect(root, keep)
    removed = ", ".join(map(str, gone.releases)) or "none"
    click.echo(f"releases removed: {removed}; leftovers removed: {gone.leftovers}")


def _switch(root: Path, number: int, gateways: Sequence[str], wait_s: float) -> None:
    if not (root / "serving.json").exists():
        raise InvalidConfig(f"no release is active under {root}: activate the first one with --offline")
    Switch(root, [RemoteGateway(address) for address in gateways], wait_s, click.echo).to(number)


def _state(root: Path) -> ServingState | None:
    """The serving state, None before the first activation."""
    return serving_state(root) if (root / "serving.json").exists() else None


def _mark(number: int, state: ServingState | None) -> str:
    if state is None:
        return ""
    marks: dict[int | None, str] = {
        state.previous: "previous",
        **dict.fromkeys(state.open, "open"),
        state.active: "active",
    }
    return marks.get(number, "")


def _facts(root: Path, number: int) -> str:
    try:
        opened = open_release(root, number, verify=False)
    except InvalidRelease as error:
        return f"damaged: {error.message}"
    manifest = opened.manifest
    newest = datetime.fromtimestamp(manifest["watermark_ms"] / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M")
    return f"{opened.config.model.variant:<7} {manifest['dataset']:<20} {newest:<17} {_megabytes(opened):>8.1f}"


def _megabytes(opened: Release) -> float:
    return float(sum(file["bytes"] for file in opened.manifest["files"].values())) / 1e6
