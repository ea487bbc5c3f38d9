"""What the tests of the manifests look at."""

from __future__ import annotations

from functools import cache
from typing import Any

import click

from deploy.k8s.rendered import Container, Stack, render
from services.cli.main import main as pinrec
from services.common import probe
from services.gateway import server as gateway
from services.ingest import kafka
from services.items import server as items
from services.signals import server as signals
from services.triton.__main__ import main as triton

STACKS = {
    "laptop": (["overlays/laptop"], []),
    "gpu": (["overlays/gpu"], []),
    "split": (["overlays/split"], []),
    "hpa": (["base"], ["components/hpa"]),
    "secure": (["overlays/split", "toolbox"], ["components/kafka", "components/secure", "components/mtls"]),
    "batch-view": (["base", "toolbox"], ["components/batch-view"]),
    "tracing": (["overlays/split"], ["components/tracing"]),
    "kafka": (["overlays/laptop"], ["components/kafka"]),
}
"""What is rendered: the overlays, and each component with something to stand on."""

COMMANDS = {
    "services.gateway.server": gateway.main,
    "services.signals.server": signals.main,
    "services.items.server": items.main,
    "services.triton": triton,
    "services.ingest.kafka": kafka.main,
    "services.cli.main": pinrec,
    "services.common.probe": probe.main,
}


@cache
def stack(name: str) -> Stack:
    """One of STACKS, put together by a kustomization as a user would write it."""
    return render(*STACKS[name])


def each_container() -> list[Container]:
    """Every container of every stack; a job and the toolbox are pods like others here."""
    return [one for name in STACKS for one in stack(name).containers()]


def command(name: str, words: list[str]) -> dict[str, Any]:
    """What a `python -m` command line sets, as the program itself reads it; fails where that would refuse."""
    python, flag, module, *rest = words
    assert (python, flag) == ("python", "-m"), name
    found: click.Command = COMMANDS[module]
    context = click.Context(found)
    while isinstance(found, click.Group):
        verb = found.get_command(context, rest.pop(0))
        assert verb is not None, name
        found = verb
        context = click.Context(found)
    given, left, _ = found.make_parser(context).parse_args(list(rest))
    assert not left, name
    wanted = {option.name for option in found.params if option.required and not option.envvar}
    assert wanted <= given.keys(), name
    return given


def options(one: Container) -> dict[str, Any]:
    """What a container's command line sets."""
    return command(one.name, one.words)
