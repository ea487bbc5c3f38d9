"""`pinrec release`: what is published, whether it is whole, and which one is served."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import click

from pinrec_core import release as releases
from pinrec_core.errors import InvalidRelease
from pinrec_core.release import Release, ServingState, list_releases, open_release, serving_state
from services.cli.options import releases_option


@click.group()
def release() -> None:
    """List, verify and activate releases.

    A release is an immutable folder with everything that serving needs; serving.json beside it says which one is active
    and which ones (two at most) the stages hold open.
    """


@release.command(name="list")
@releases_option
def list_command(root: Path) -> None:
    """Show every release with its data, size and state (active, open)."""
    numbers = list_releases(root)
    if not numbers:
        click.echo(f"no release under {root}; `pinrec export` publishes one")
        return
    state = _state(root)
    click.echo(f"{'release':>7}  {'state':<7} {'variant':<7} {'data set':<20} {'newest event':<17} {'MB':>8}")
    for number in numbers:
        click.echo(_line(open_release(root, number, verify=False), state))


@release.command()
@click.argument("number", type=click.IntRange(min=1))
@releases_option
def verify(number: int, root: Path) -> None:
    """Hold every file of release NUMBER to its checksum and the index to the item embedder that made it."""
    opened = open_release(root, number, verify=True)
    size = f"{len(opened.manifest['files'])} files, {_megabytes(opened):.1f} MB"
    click.echo(f"release {number} is whole: {size}, checksums and fingerprints fit")


@release.command()
@click.argument("number", type=click.IntRange(min=1))
@releases_option
def activate(number: int, root: Path) -> None:
    """Verify release NUMBER and make it the one that requests are served from.

    The stages open it beside the active one; each gateway goes on admitting requests for the old one until the new
    one has answered a canary request, then flips. Activating the old number goes back.
    """
    state = releases.activate(root, number)
    click.echo(f"release {state.active} is active; open: {', '.join(map(str, state.open))}")


def _state(root: Path) -> ServingState | None:
    """The serving state, None before the first activation."""
    try:
        return serving_state(root)
    except InvalidRelease:
        if (root / "serving.json").exists():
            raise
        return None


def _line(opened: Release, state: ServingState | None) -> str:
    manifest, number = opened.manifest, opened.number
    mark = "" if state is None or number not in state.open else "active" if number == state.active else "open"
    newest = datetime.fromtimestamp(manifest["watermark_ms"] / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M")
    variant = opened.config.model.variant
    return f"{number:>7}  {mark:<7} {variant:<7} {manifest['dataset']:<20} {newest:<17} {_megabytes(opened):>8.1f}"


def _megabytes(opened: Release) -> float:
    return float(sum(file["bytes"] for file in opened.manifest["files"].values())) / 1e6
