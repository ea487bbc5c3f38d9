"""Which release requests are admitted for, and whether the stack behind the gateway answers.

A canary request travels through the whole ensemble at start and then periodically, because Triton reports a model as
ready whose Python process has died. A newly activated release is admitted only once a canary of its own came back:
every stage and the signal service then hold it open, and no client meets RELEASE_NOT_OPEN.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

from pinrec_core.errors import InvalidRelease, PinrecError, Unavailable
from pinrec_core.release import Release, open_release, serving_state
from pinrec_core.serving.canary import canary_request
from services.common.errors import status_of
from services.common.metrics import GatewayMetrics
from services.gateway.calls import Breaker
from services.gateway.fallback import PopularAnswers
from services.gateway.group import Group
from services.gateway.triton_client import Ensemble

POLL_S = 0.25
"""How often serving.json is looked at, and a release that waits for its first canary is tried."""

RETRY_S = 1.0
"""Longest time between canaries while they get lost."""

CANARY_TIMEOUT_S = 5.0
LOST_UNTIL_OPEN = 2
"""One lost canary is a hiccup; after the second in a row no request is sent into its deadline."""

log = logging.getLogger(__name__)


class SetHealth(Protocol):
    """What the health service says from now on: of the gateway, and of whether its answers are full ones."""

    async def __call__(self, *, serving: bool, full: bool) -> None:
        """Set both."""


class ReleaseWatch:
    """Follows `serving.json` under `root` and sends canaries through `ensemble`, which open and close `breaker`.

    With `fallback` an admitted release is also served from its popular lists, and the gateway stays SERVING. `group` is
    told what is admitted.
    """

    def __init__(
        self,
        root: Path,
        ensemble: Ensemble,
        breaker: Breaker,
        metrics: GatewayMetrics,
        set_health: SetHealth,
        group: Group,
        canary_s: float = 5.0,
        fallback: bool = True,
    ) -> None:
        self._root = root
        self._ensemble = ensemble
        self._breaker = breaker
        self._metrics = metrics
        self._set_health = set_health
        self._group = group
        self._canary_s = canary_s
        self._fallback = fallback
        self._admitted: Release | None = None
        self._wanted: Release | None = None
        self._seen: tuple[int, int] | None = None
        self._lost = 0
        self._canary_at = 0.0
        self._told: tuple[bool, bool] | None = None
        self.popular: PopularAnswers | None = None
        """What answers for the admitted release while the stages do not; None where nothing can."""

    @property
    def admitted(self) -> int:
        """Number of the release that requests are admitted for, 0 before the first."""
        return self._admitted.number if self._admitted is not None else 0

    @property
    def is_ready(self) -> bool:
        """Whether the stages answer for an admitted release."""
        return self._admitted is not None and not self._breaker.is_open

    def active(self) -> Release:
        """The release to admit a request for; raises Unavailable until one has answered a canary."""
        if self._admitted is None:
            raise Unavailable("not ready: no active release has answered yet")
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
        elif self._admitted is not None and self._canary_is_due():
            self._count(await self._canary(self._admitted))
        await self._tell()

    def _canary_is_due(self) -> bool:
        is_well = not self._lost and not self._breaker.is_open
        pause_s = self._canary_s if is_well else min(self._canary_s, RETRY_S)
        return time.monotonic() - self._canary_at >= pause_s

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
            log.log(logging.DEBUG if self._lost else logging.WARNING, "canary of %d: %s", release.number, error)
        self._metrics.canary.labels(code).inc()
        self._canary_at = time.monotonic()
        return code == "OK"

    async def _admit(self, release: Release) -> None:
        popular = await asyncio.to_thread(self._popular_of, release)
        log.info("admitting requests for release %d", release.number)
        if self._admitted is not None:
            self._metrics.release_switches.inc()
        self._admitted, self.popular = release, popular
        self._group.admit(release.number)
        self._metrics.active_release.set(release.number)
        self._metrics.release_watermark_ms.set(release.manifest["watermark_ms"])
        self._count(passed=True)

    def _popular_of(self, release: Release) -> PopularAnswers | None:
        if not self._fallback:
            return None
        try:
            return PopularAnswers(release)
        except InvalidRelease as error:
            log.error("release %d has nothing to fall back to: %s", release.number, error.message)
            return None

    def _count(self, passed: bool) -> None:
        self._lost = 0 if passed else self._lost + 1
        if passed:
            self._breaker.close()
        elif self._lost == LOST_UNTIL_OPEN:
            self._breaker.open()

    async def _tell(self) -> None:
        """The health service, what has changed."""
        full = self.is_ready
        serving = full or (self._admitted is not None and self.popular is not None)
        if (serving, full) != self._told:
            self._told = serving, full
            words = "SERVING" if full else "SERVING from popular lists" if serving else "NOT_SERVING"
            log.warning("health turns %s", words)
            await self._set_health(serving=serving, full=full)
