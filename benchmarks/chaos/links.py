"""Delayed, lost and cut-off packets: between the callers, the gateway and Triton, and between Triton and signals."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.chaos.faults import HOLD_S, Fault, try_all
from benchmarks.chaos.fleet import Fleet, listening, running
from benchmarks.chaos.network import Link, disturbed, is_possible
from benchmarks.chaos.sandbox import is_inside
from benchmarks.chaos.table import Row
from benchmarks.chaos.world import World
from services.cli.supervisor import Process
from services.common.probe import serves

DELAY_S, LOSS = 0.1, 0.05


def measure(world: World, folder: Path) -> list[Row]:
    """All of them; gateway and signals each live at the far end of a link of their own."""
    if not (is_inside() and is_possible()):
        return [Row("delayed, lost and cut-off packets", "stated", "skipped: needs root and /dev/net/tun", None)]
    with ExitStack() as links:
        gateway, signals = (links.enter_context(Link(number)) for number in (1, 2))

        def change(_: Path, started: list[Process]) -> list[Process]:
            return behind(signals, "signals", behind(gateway, "gateway", started))

        with running(world, folder, change, host=gateway.outer) as fleet:
            return try_all(fleet, listed(gateway, signals), capacity_s=5.0)


def behind(link: Link, name: str, started: list[Process]) -> list[Process]:
    """The process of that name at the far end of the link, and everyone told of its address there."""
    here = listening(next(each for each in started if each.name == name))
    there = f"{link.inner}:{here.rpartition(':')[2]}"
    told = [replace(each, command=[there if word == here else word for word in each.command]) for each in started]
    return [
        replace(each, command=[*link.inside, *each.command], ready=lambda: serves(there)) if each.name == name else each
        for each in told
    ]


def listed(gateway: Link, signals: Link) -> list[Fault]:
    """What is done to each link."""
    ends = {"the gateway's packets": gateway, "packets between Triton and signals": signals}
    ways = {
        f"delayed by {1000 * DELAY_S:.0f} ms each way": (DELAY_S, 0.0),
        f"lost, {LOSS:.0%}": (0.0, LOSS),
        "cut off": (0.0, 1.0),
    }
    return [
        Fault(f"{what} {how}", partial(_disturbed, link=link, delay_s=delay_s, loss=loss), HOLD_S)
        for what, link in ends.items()
        for how, (delay_s, loss) in ways.items()
    ]


def _disturbed(_: Fleet, link: Link, delay_s: float, loss: float) -> AbstractContextManager[None]:
    return disturbed(link, delay_s, loss)
