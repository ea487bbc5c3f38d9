"""Images and docker-compose.yml, tried: build, start, call, break, stop.

    python -m deploy.docker.smoke --work work/compose-smoke
    python -m deploy.docker.smoke --work work/compose-smoke --base localhost/pinrec-base:bookworm   # no image registry

Serves a small synthetic world. Prints a row for each thing tried with its bar; exit code 1 if one is missed.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click

from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, make_world
from deploy.docker import checks
from deploy.docker.images import Engine, build, find_engine
from deploy.docker.running import ROLES, Containers
from pinrec_core.release import activate

IMAGES, TAG = "localhost/pinrec", "smoke"
PROJECT = "pinrec-smoke"
PORTS = ("gateway", "signals", "items", "prometheus")


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for compose-smoke.json.")
@click.option("--base", default="", help="Image to build on instead of the Dockerfile's; packages come as wheels.")
@click.option("--keep", is_flag=True, help="Leave the containers and volumes as they are at the end.")
def main(work: Path, report: Path | None, base: str, keep: bool) -> None:
    """Build the images, start the stack, try it, stop it and print the table."""
    work = work.resolve()
    engine = find_engine()
    world = make_world(work / "world")
    activate(world.releases, 1)
    click.echo(f"building with {engine.program}")
    build(engine, IMAGES, TAG, base, work / "wheels")
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    stack = Containers(engine, PROJECT, settings(world, ports, base), services(base))
    callers = checks.Callers(**{name: f"127.0.0.1:{port}" for name, port in ports.items()})
    secrets = work / "secrets"
    files = ("docker-compose.yml", "deploy/docker/secure.yml")
    guarded = replace(stack, settings={**stack.settings, "PINREC_SECRETS": str(secrets)}, files=files)
    stack.down()
    try:
        rows = [show(row) for row in tried(engine, stack, callers, world)]
        stack.down()
        rows.append(show(checks.secured(guarded, callers, secrets)))
    finally:
        if not keep:
            stack.down()
    if report is not None:
        save(rows, report / "compose-smoke.json", f"make compose-smoke{f' BASE={base}' if base else ''}")
    finish(rows)


def tried(engine: Engine, stack: Containers, callers: checks.Callers, world: World) -> Iterator[Row]:
    """Every row, in the order in which things are done."""
    yield checks.images(engine, IMAGES, TAG)
    yield checks.started(stack.up())
    yield checks.hardening(stack)
    yield checks.budgets(callers)
    yield checks.read_your_write(callers)
    yield checks.deletion(callers)
    yield checks.scraped(callers)
    yield checks.restart(stack, callers)
    yield checks.dead_stub(stack, callers)
    yield checks.switch(callers, world.releases)
    yield checks.stopped(stack)


def services(base: str) -> tuple[str, ...]:
    """What is started: all of profile cpu; where no registry is reached, only what can be built here."""
    seen = ("prometheus",) if base else ("prometheus", "grafana", "otel-collector")
    if base:
        click.echo("without a registry: Prometheus is Debian's; Grafana and the trace collector are left out")
    return (*ROLES, *seen)


def settings(world: World, ports: dict[str, int], base: str) -> dict[str, str]:
    """Variables of docker-compose.yml."""
    variables = {
        "PINREC_IMAGES": IMAGES,
        "PINREC_TAG": TAG,
        "PINREC_RELEASES": str(world.releases),
        "PINREC_BATCH_VIEW": str(world.batch_views),
        **{f"PINREC_{name.upper()}_PORT": str(port) for name, port in ports.items()},
    }
    if base:
        variables |= {"PROMETHEUS_IMAGE": f"{IMAGES}/prometheus:{TAG}", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    return variables


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    main()
