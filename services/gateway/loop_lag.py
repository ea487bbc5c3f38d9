"""How late the gateway's event loop runs what is due: what a request waits for this process, not for the stages."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Gauge

from services.gateway.group import Group

_EVERY_S = 0.01
_SHARE = 0.1
"""Weight of the newest look: the lag of about the last tenth of a second."""


class LoopLag:
    """Measured while `run` runs, which also tells `group` that the loop turns."""

    def __init__(self, gauge: Gauge, group: Group) -> None:
        self._gauge = gauge
        self._group = group
        self.seconds = 0.0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            due = time.monotonic() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self.seconds += _SHARE * (max(0.0, time.monotonic() - due) - self.seconds)
            self._gauge.set(self.seconds)
            self._group.beat()
