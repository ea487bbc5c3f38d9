"""The stack process by process, each started again as soon as it ends, as a container runtime does."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.parts import Part, send, wait_for
from benchmarks.chaos.world import World, fresh
from pinrec_core.release import ServingState, serving_state, write_serving_state
from services.cli.supervisor import Process
from services.cli.up import Stack, processes
from services.common.probe import serves

_LOOK_S = 0.05
STOP_S = 30.0
CRASH_PAUSE_S = 1.0
"""Before a part that died while it started is started again."""


class Fleet:
    """The parts of a stack by name: signals, items, triton, gateway. Use as a context: starts and stops them."""

    def __init__(self, stack: Stack, started: Sequence[Process], folder: Path) -> None:
        self.stack = stack
        self.parts = {process.name: Part(process, folder / f"{process.name}.log") for process in started}
        self._stopping = threading.Event()
        self._keepers = [threading.Thread(target=self._keep, args=(part,), daemon=True) for part in self.parts.values()]

    @property
    def gateway(self) -> str:
        """Where candidates are asked for."""
        return listening(self.parts["gateway"].process)

    @property
    def signals(self) -> str:
        """Where events are appended."""
        return listening(self.parts["signals"].process)

    @property
    def items(self) -> str:
        """Where items are added."""
        return listening(self.parts["items"].process)

    @property
    def release(self) -> int:
        """Number of the active one."""
        return serving_state(self.stack.releases).active

    @property
    def sessions(self) -> dict[str, list[int]]:
        """Sessions of each part, of all its starts."""
        return {name: [*part.sessions] for name, part in self.parts.items() if part.living()}

    def mend(self) -> None:
        """Start Triton and the gateway anew, after something that they did not get over by themselves."""
        for name in ("triton", "gateway"):
            self.parts[name].kill()
        if not wait_for(lambda: serves(self.gateway)):
            raise RuntimeError("the gateway does not turn SERVING again: " + self.parts["gateway"].last_words())

    def restarts(self) -> int:
        """How often a part was started again."""
        return sum(part.starts - 1 for part in self.parts.values())

    def logs(self) -> str:
        """What all of them have said so far."""
        return "".join(part.log.read_text(errors="replace") for part in self.parts.values())

    def __enter__(self) -> Fleet:
        with ExitStack() as undo:
            undo.callback(self._stop)
            for part in self.parts.values():
                part.start()
            for keeper in self._keepers:
                keeper.start()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        """SIGTERM to all, and SIGKILL to what is left of them after a while."""
        self._stopping.set()
        for keeper in self._keepers:
            if keeper.is_alive():
                keeper.join()
        running = [part for part in self.parts.values() if part.starts and part.code() is None]
        for part in running:
            send(part.pid, signal.SIGTERM)
        wait_for(lambda: all(part.code() is not None for part in running), STOP_S)
        for part in self.parts.values():
            part.kill()

    def _keep(self, part: Part) -> None:
        while not self._stopping.wait(_LOOK_S):
            if part.code() is None:
                continue
            try:
                part.start()
            except RuntimeError:  # its log says why
                self._stopping.wait(CRASH_PAUSE_S)


Change = Callable[[Path, list[Process]], list[Process]]
"""What is done to a fleet's folder and processes before they start."""


def as_they_are(_: Path, started: list[Process]) -> list[Process]:
    """No change."""
    return started


def listening(process: Process) -> str:
    """host:port of a server of ours."""
    return process.command[process.command.index("--listen") + 1]


@contextmanager
def running(world: World, folder: Path, change: Change = as_they_are, host: str = "127.0.0.1") -> Iterator[Fleet]:
    """A fleet on copies of the world's releases, 1 active."""
    shutil.copytree(world.releases, fresh(folder) / "releases")
    write_serving_state(folder / "releases", ServingState(1, (1,)))
    stack = replace(world.stack(folder / "signals"), host=host, releases=folder / "releases")
    with Fleet(stack, change(folder, processes(stack)), folder) as fleet:
        if not wait_for(lambda: serves(fleet.gateway)):
            raise RuntimeError("the gateway does not turn SERVING: " + fleet.parts["gateway"].last_words())
        yield fleet
