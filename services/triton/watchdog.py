"""Is Triton's every stage there? A canary through what it serves, and when one is lost, the dead stage is loaded again.

Triton itself goes on saying "ready" for a stage whose Python process has died, and never starts it again.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

from pinrec_core.errors import PinrecError, Unavailable
from pinrec_core.release import Release, open_release, serving_state
from pinrec_core.serving.contract import ENSEMBLE, STAGES
from services.common.metrics import KeeperMetrics
from services.triton.client import TritonClient

CANARY_S = 1.0
"""Time between canaries."""

LOST_UNTIL_NOT_READY = 2
"""One lost canary is a hiccup."""

SILENT_UNTIL_STUCK = 2
"""Pings in a row that a stage leaves unanswered until its process is killed and loaded again."""

GIVE_UP_S = 20.0
"""A server that has not answered for so long is not waited for: its container had better start anew."""

log = logging.getLogger(__name__)


class Watchdog:
    """Looks after the stages behind `models` ("pinrec" = all of them).

    `pids` finds the processes of a stage, which are killed if they live but do not answer.
    """

    def __init__(
        self,
        client: TritonClient,
        releases: Path,
        models: Sequence[str],
        metrics: KeeperMetrics,
        pids: Callable[[str], list[int]],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._root = releases
        self._models = tuple(models)
        self._stages = [stage.name for stage in STAGES] if ENSEMBLE.name in models else list(models)
        self._metrics = metrics
        # A series that begins at 1 has not increased for Prometheus: an alert on the first repair needs a 0 before.
        for stage, result in product(self._stages, ("repaired", "failed")):
            metrics.repairs.labels(stage, result)
        self._pids = pids
        self._now = now
        self._release: Release | None = None
        self._lost = 0
        self._silent: Counter[str] = Counter()
        self._answered_at: float | None = None
        self.problem = "starting"
        """Why it is not ready, empty while it is."""
        self.gave_up = False
        """Whether nothing but a new start can help."""
        self.stepped_at = now()
        """When the last look ended."""

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` or until nothing can be done."""
        while not self.gave_up and not stop.wait(CANARY_S):
            self.step()

    def step(self) -> None:
        """One canary; if it is lost, find out why and repair what can be repaired, and send another."""
        if self._look() and not self.gave_up:
            self._look()

    def _look(self) -> bool:
        """One canary. Returns whether something was repaired."""
        repaired = False
        try:
            self._canary()
        except PinrecError as error:
            repaired = self._lose(error)
        else:
            self._metrics.canaries.labels("answered").inc()
            self._turn("")
            self._lost, self._answered_at = 0, self._now()
            self._silent.clear()
        self.stepped_at = self._now()
        return repaired

    def _canary(self) -> None:
        if ENSEMBLE.name in self._models:
            self._client.canary(self._active())
        else:
            for stage in self._stages:
                self._client.ping(stage)

    def _active(self) -> Release:
        """The release that serving.json names. Raises InvalidRelease."""
        number = serving_state(self._root).active
        if self._release is None or self._release.number != number:
            self._release = open_release(self._root, number, verify=False)
        return self._release

    def _lose(self, error: PinrecError) -> bool:
        """Returns whether something was repaired."""
        if not self._client.is_live():
            self._wait_for_the_server()
            return False
        self._metrics.canaries.labels("lost").inc()
        self._answered_at = self._now()
        self._lost += 1
        sick = self._sick()
        for stage in sick:
            self._turn(f"{stage} is being loaded again")
            self._repair(stage)
        if not sick and self._lost >= LOST_UNTIL_NOT_READY:
            self._turn(f"canaries are lost: {error.message}")
        return bool(sick)

    def _wait_for_the_server(self) -> None:
        """Before its first answer it is loading, which whoever started us bounds; later, only for a while."""
        if self._answered_at is None:
            return
        self._metrics.canaries.labels("lost").inc()
        self._turn("the server does not answer")
        if self._now() - self._answered_at > GIVE_UP_S:
            log.error("the server has not answered for %.0f s", GIVE_UP_S)
            self.gave_up = True

    def _sick(self) -> list[str]:
        """Stages whose process is gone, and those that have not answered several times in a row, which are killed."""
        sick = []
        for stage in self._stages:
            try:
                self._client.ping(stage)
                self._silent[stage] = 0
            except Unavailable as error:
                log.warning("%s", error.message)
                self._silent[stage] += 1
                alive = self._pids(stage)  # Triton also calls a process dead that a busy machine kept waiting
                if not alive or self._silent[stage] >= SILENT_UNTIL_STUCK:
                    for pid in alive:
                        os.kill(pid, signal.SIGKILL)
                    sick.append(stage)
        return sick

    def _repair(self, stage: str) -> None:
        start = self._now()
        try:
            self._client.load_again(stage, self._models)
        except Unavailable as error:
            log.error("%s", error.message)
            self._metrics.repairs.labels(stage, "failed").inc()
            self.gave_up = True
        else:
            log.warning("%s was loaded again in %.1f s", stage, self._now() - start)
            self._metrics.repairs.labels(stage, "repaired").inc()
            self._silent[stage] = 0

    def _turn(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("not ready: %s", problem) if problem else log.warning("ready")
        self.problem = problem
        self._metrics.ready.set(not problem)


def stage_processes(server_pid: int, stage: str) -> list[int]:
    """Living processes under a tritonserver that run a stage's `model.py` (Linux)."""
    marker = f"/{stage}/1/model.py\0".encode()
    children = [path.read_text().split() for path in Path(f"/proc/{server_pid}/task").glob("*/children")]
    return [int(pid) for pids in children for pid in pids if marker in _command_line(int(pid))]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
