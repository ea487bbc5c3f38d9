"""Which release requests are admitted for, and whether the stack behind the gateway answers.

A canary request travels through the whole ensemble at start and then periodically, because Triton reports a model as
ready whose Python process has died. A newly activated release is admitted only once a canary of its own came back:
every stage and the signal service then hold it open, and no client meets RELEASE_NOT_OPEN.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from pinrec_core.errors import InvalidRelease, PinrecError, Unavailable
from pinrec_core.release import Release, open_release, serving_state
from pinrec_core.serving.canary import canary_request
from services.common.errors import status_of
from services.common.metrics import GatewayMetrics
from services.gateway.triton_client import Ensemble

POLL_S = 0.25
"""How often serving.json is looked at, and a release that waits for its first canary is tried."""

RETRY_S = 1.0
"""Longest time between canaries while they get lost."""

CANARY_TIMEOUT_S = 5.0
FAILURES_UNTIL_NOT_SERVING = 2
"""One lost canary is a hiccup; after the second in a row requests are refused instead of run into their deadlines."""

log = logging.getLogger(__name__)


class ReleaseWatch:
    """Follows `serving.json` under `root` and sends canaries through `ensemble`.

    `set_serving` is told when the answer of the health service changes.
    """

    def __init__(
        self,
        root: Path,
        ensemble: Ensemble,
        metrics: GatewayMetrics,
        set_serving: Callable[[bool], Awaitable[None]],
        canary_s: float = 5.0,
    ) -> None:
        self._root = root
        self._ensemble = ensemble
        self._metrics = metrics
        self._set_serving = set_serving
        self._canary_s = canary_s
        self._admitted: Release | None = None
        self._wanted: Release | None = None
        self._seen: tuple[int, int] | None = None
        self._failures = 0
        self.is_ready = False
        """Whether the health service says SERVING."""
        self._next_canary = 0.0

    @property
    def admitted(self) -> int:
        """Number of the release that requests are admitted for, 0 before the first."""
        return self._admitted.number if self._admitted is not None else 0

    def active(self) -> Release:
        """The release to admit a request for; raises Unavailable until one has answered a canary, and while none do."""
        if self._admitted is None:
            raise Unavailable("not ready: no active release has answered yet")
        if self._failures >= FAILURES_UNTIL_NOT_SERVING:
            raise Unavailable("the serving stages do not answer")
        return self._admitted

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(POLL_S)

    async def step(self) -> None:
        """One look: read serving.json if it changed, try a release that waits, canary the admitted one when due."""
        self._read()
        if self._wanted is not None and self._wanted is not self._admitted and await self._canary(self._wanted):
            await self._admit(self._wanted)
        elif self._admitted is not None and time.monotonic() >= self._next_canary:
            await self._count(await self._canary(self._admitted))

    def _read(self) -> None:
        """Open the release that serving.json names; whatever is wrong with it, what is admitted stays."""
        try:
            stat = (self._root / "serving.json").stat()
        except OSError:
            return
        if (stat.st_mtime_ns, stat.st_ino) == self._seen:
            return
        self._seen = (stat.st_mtime_ns, stat.st_ino)
        try:
            number = serving_state(self._root).active
            if self._wanted is None or self._wanted.number != number:
                self._wanted = open_release(self._root, number, verify=False)
        except InvalidRelease as error:
            log.error("serving.json is not followed: %s", error.message)

    async def _canary(self, release: Release) -> bool:
        request = canary_request(release, int(CANARY_TIMEOUT_S * 1000))
        code = "OK"
        try:
            await self._ensemble.infer(request, CANARY_TIMEOUT_S, request_id="canary")
        except PinrecError as error:
            code = status_of(error)[0].name
            log.log(logging.DEBUG if self._failures else logging.WARNING, "canary of %d: %s", release.number, error)
        self._metrics.canary.labels(code).inc()
        return code == "OK"

    async def _admit(self, release: Release) -> None:
        log.info("admitting requests for release %d", release.number)
        if self._admitted is not None:
            self._metrics.release_switches.inc()
        self._admitted = release
        self._metrics.active_release.set(release.number)
        self._metrics.release_watermark_ms.set(release.manifest["watermark_ms"])
        await self._count(passed=True)

    async def _count(self, passed: bool) -> None:
        self._next_canary = time.monotonic() + (self._canary_s if passed else min(self._canary_s, RETRY_S))
        self._failures = 0 if passed else self._failures + 1
        if passed or self._failures == FAILURES_UNTIL_NOT_SERVING:
            if passed != self.is_ready:
                log.warning("health turns %s", "SERVING" if passed else "NOT_SERVING")
            self.is_ready = passed
            self._metrics.ready.set(passed)
            await self._set_serving(passed)
