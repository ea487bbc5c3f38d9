"""Every process killed and frozen, disks filled, files damaged, clocks set wrong, all at half of the capacity.

For each: what callers saw, how long until every call was answered in full again, and what was lost. Whatever dies is
started again at once, as a container runtime does it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.chaos import harm
from benchmarks.chaos.calling import FULL, Load, capacity_rps, counted, recovery_s, words
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.rolling import LINGER, roll
from benchmarks.chaos.sandbox import is_inside, mount_small
from benchmarks.chaos.signals import count_damage
from benchmarks.chaos.table import Row, show
from benchmarks.chaos.world import World
from benchmarks.chaos.writers import Writer
from services.cli.supervisor import Process

SHARE_OF_CAPACITY = 0.5
BEFORE_S, STEADY_S, GIVE_UP_S = 2.0, 3.0, 40.0
HOLD_S = 5.0
BAR_S = 10.0
STARTUP = 1.5
"""Start-ups of Triton, with room for the load beside it."""
AFTER_A_FAILED_STARTUP = 3.0
"""One that cannot succeed may be under way when the fault ends."""
MARKED = (FULL, "degraded", "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED")
"""How what callers may see begins: anything else is a lie or a bug."""


@dataclass(frozen=True)
class Fault:
    """`during` holds for `hold_s` seconds; full service is due `BAR_S` seconds after its end.

    Where Triton has to start anew it is due after so many of its `startups`, if that is longer.
    """

    name: str
    during: Callable[[Fleet], AbstractContextManager[None]]
    hold_s: float = 0.0
    startups: float = 0.0

    @property
    def title(self) -> str:
        """With its length."""
        return f"{self.name}, {self.hold_s:.0f} s" if self.hold_s else self.name


def listed(fleet: Fleet) -> list[Fault]:
    """Every fault that this machine can inflict on the fleet."""
    return [*kills(fleet), *freezes(fleet), *damage(fleet), *clocks()]


def kills(fleet: Fleet) -> list[Fault]:
    """kill -9 of each process."""
    triton = fleet.parts["triton"]
    kept = harm.tritonserver(fleet) != triton.pid
    server = Fault("kill -9 of tritonserver under its keeper", harm.server_killed, startups=STARTUP)
    return [
        *(
            Fault(f"kill -9 of {name}", partial(harm.killed, name=name), startups=STARTUP * (name == "triton"))
            for name in fleet.parts
        ),
        *([server] if kept else []),
        *(Fault(f"kill -9 of the stage {n}", partial(harm.stage_killed, name=n)) for n in sorted(triton.stages())),
    ]


def freezes(fleet: Fleet) -> list[Fault]:
    """SIGSTOP of each process for a while, a stage that gets a fifth of its time, and callers that do not read."""
    return [
        *(Fault(f"SIGSTOP of {name}", partial(harm.frozen, name=name), HOLD_S) for name in fleet.parts),
        Fault("SIGSTOP of tritonserver", harm.server_frozen, HOLD_S),
        # Loading a stage again whose process comes back to life meanwhile may end the server (24.10 aborts).
        Fault("SIGSTOP of the stage generate", partial(harm.stage_frozen, name="generate"), HOLD_S, STARTUP),
        Fault(f"the stage generate stopped {harm.SLOW_SHARE:.0%} of the time", harm.slowed, HOLD_S),
        Fault(f"{harm.SLOW_READERS} clients that never read their answers", harm.slow_readers, HOLD_S),
    ]


def damage(fleet: Fleet) -> list[Fault]:
    """Full disks and files that change under the stack."""
    disks = [
        Fault("full disk under the signal service", partial(harm.filled, folder=fleet.stack.signals_data), HOLD_S),
        Fault("full /dev/shm", partial(harm.filled, folder=harm.SHM), HOLD_S),
        Fault("full /dev/shm, and a stage killed", harm.filled_and_killed, HOLD_S, AFTER_A_FAILED_STARTUP),
    ]
    flipped = Fault("a byte of the index changed, triton killed", harm.flipped, HOLD_S, AFTER_A_FAILED_STARTUP)
    cut = Fault("the index cut to half under the running stage", harm.cut_off, HOLD_S, AFTER_A_FAILED_STARTUP)
    return [*(disks if is_inside() else []), flipped, cut]


def clocks() -> list[Fault]:
    """The clocks of gateway and signal service jump, both ways."""
    return [
        Fault(f"clocks of gateway and signals {hours:+d} h", partial(harm.skewed, seconds=hours * 3_600.0), HOLD_S)
        for hours in (2, -2)
    ]


def measure(world: World, folder: Path) -> list[Row]:
    """Every fault, then what was lost over all of them."""
    with running(world, folder, prepared) as fleet:
        rows = try_all(fleet, listed(fleet), capacity_s=8.0)
        rows.append(show(asyncio.run(roll(fleet, rows[0].figures["rate_rps"]))))
    if not is_inside():
        rows.append(Row("full disk, full /dev/shm", "stated", "skipped: needs root and namespaces", None))
    return rows


def prepared(folder: Path, started: list[Process]) -> list[Process]:
    """Events on a disk that can be filled, and processes whose clocks can be set."""
    if is_inside():
        mount_small(folder / "signals")
    clocked = [harm.clocked(folder, each) if each.name in ("gateway", "signals") else each for each in started]
    return [replace(each, command=[*each.command, *LINGER]) if each.name == "gateway" else each for each in clocked]


def try_all(fleet: Fleet, faults: Sequence[Fault], capacity_s: float) -> list[Row]:
    """One after the other, while a writer appends events; the last rows say what was lost."""
    writer = Writer(fleet.signals, 20_000, int(time.time() * 1000) - 3_600_000, release=fleet.release, pause_s=0.02)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        rows = asyncio.run(_try_all(fleet, faults, capacity_s, writer))
    finally:
        writer.stop.set()
        thread.join()
    return [*rows, lost(fleet, writer)]


async def _try_all(fleet: Fleet, faults: Sequence[Fault], capacity_s: float, writer: Writer) -> list[Row]:
    rate = SHARE_OF_CAPACITY * await capacity_rps(fleet.gateway, capacity_s)
    startup_s = fleet.parts["triton"].startup_s
    return [show(await try_one(fleet, fault, rate, startup_s, writer)) for fault in faults]


async def try_one(fleet: Fleet, fault: Fault, rate: float, startup_s: float, writer: Writer) -> Row:
    """Ask, inflict, hold, relieve, and wait until all is well."""
    bar_s = max(BAR_S, fault.startups * startup_s)
    failed_appends = writer.repeats
    async with Load(fleet.gateway, rate) as load:
        await asyncio.sleep(BEFORE_S)
        began = time.monotonic()
        context = fault.during(fleet)
        await asyncio.to_thread(context.__enter__)
        await asyncio.sleep(fault.hold_s)
        await asyncio.to_thread(context.__exit__, None, None, None)
        relieved = time.monotonic()
        settled = await load.settle(STEADY_S, max(GIVE_UP_S, 1.5 * bar_s))
    if not settled:
        await asyncio.to_thread(fleet.mend)
    failed_appends = writer.repeats - failed_appends
    appends_s = max(0.0, writer.last_failed_s - relieved) if failed_appends else 0.0
    before = counted([call for call in load.calls if call.scheduled_s < began])
    during = counted([call for call in load.calls if call.scheduled_s >= began])
    recovered = recovery_s(load.calls, relieved) if settled else float("inf")
    unmarked = {what: count for what, count in during.items() if not what.startswith(MARKED)}
    bar = f"<= {bar_s:.0f} s" + (f" ({fault.startups} x Triton's start-up)" if bar_s > BAR_S else "")
    measured = f"{words(during)}; in full again after {recovered:.1f} s"
    if failed_appends:
        measured += f"; {failed_appends} appends failed, taken again after {appends_s:.1f} s"
    return Row(
        fault.title,
        f"full service {bar}, all else marked",
        measured,
        max(recovered, appends_s) <= bar_s and not unmarked,
        {"rate_rps": rate, "before": before, "seen": during, "recovery_s": recovered, "failed_appends": failed_appends,
         "appends_recovery_s": appends_s, "unmarked": unmarked},
    )  # fmt: skip


def lost(fleet: Fleet, writer: Writer) -> Row:
    """What was acknowledged while all this happened, and is not there."""
    missing, doubled, total = count_damage(fleet.signals, [writer])
    return Row(
        "what was lost over all of them",
        "0 acknowledged events lost or doubled, each in the very next history",
        f"{total:,} acknowledged, {missing} lost, {doubled} doubled; {writer.reads} reads right after an "
        f"acknowledgement, {writer.misses} without it",
        missing == doubled == writer.misses == 0 and total > 0,
        {"acknowledged": total, "lost": missing, "doubled": doubled, "reads": writer.reads, "misses": writer.misses},
    )
