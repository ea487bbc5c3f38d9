"""`pinrec signals`: how the signal service is, copies of its realtime view, and bringing one back."""

from __future__ import annotations

from pathlib import Path

import click

from pinrec_core.signals.realtime.rocks import restore_store
from services.cli.events import TIMEOUT_S, shown_time
from services.cli.options import signals_option
from services.common.client import connect
from services.proto.signals_pb2 import BackupRequest, GetStatusRequest
from services.proto.signals_pb2_grpc import SignalServiceStub

_BACKUP_TIMEOUT_S = 600.0
"""A copy across file systems takes as long as its bytes need."""


@click.group()
def signals() -> None:
    """Look at the signal service, back up its realtime view, or restore one."""


@signals.command()
@signals_option
def status(address: str) -> None:
    """Show what is open, how far the batch view goes, and whether the realtime view works; exit code 1 if not."""
    with connect(address, SignalServiceStub) as stub:
        reply = stub.GetStatus(GetStatusRequest(), timeout=TIMEOUT_S)
    view = f"version {reply.batch_view_version}, events until {shown_time(reply.watermark_ms)}"
    click.echo(f"releases open    {', '.join(map(str, reply.open_releases)) or 'none'}")
    click.echo(f"batch view       {view if reply.batch_view_version else 'none'}")
    click.echo(f"realtime view    {reply.realtime_problem or 'works'}")
    if reply.realtime_problem:
        raise click.ClickException("appends are refused, or histories come from the batch view alone")


@signals.command()
@click.argument("name")
@signals_option
def backup(name: str, address: str) -> None:
    """Copy the realtime view to folder NAME under the service's own --backups, while it goes on serving."""
    with connect(address, SignalServiceStub) as stub:
        reply = stub.Backup(BackupRequest(name=name), timeout=_BACKUP_TIMEOUT_S)
    size = f"{reply.bytes / 1e6:.1f} MB"
    click.echo(f"backup {name}: {size}, with every event acknowledged before {shown_time(reply.taken_ms)} UTC")


@signals.command()
@click.argument("backup_folder", metavar="BACKUP", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def restore(backup_folder: Path, folder: Path) -> None:
    """Make FOLDER, which holds nothing yet, a copy of BACKUP; then start the service with --data FOLDER.

    Every row is read once on the way, so a damaged backup is found now.
    """
    count = restore_store(backup_folder, folder)
    click.echo(f"{count} events restored to {folder}")
