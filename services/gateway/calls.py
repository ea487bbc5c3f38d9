"""Calls of the ensemble that do not make an outage worse: a breaker before them, and at most one retry after."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from pinrec_core.errors import DeadlineExceeded, Unavailable
from pinrec_core.messages import CandidateRequest
from services.common.metrics import GatewayMetrics
from services.gateway.triton_client import Ensemble, EnsembleAnswer

FAILURES_IN_A_ROW = 5
"""Unanswered requests after which none is sent any more until a canary comes back."""

TIME_LEFT_FOR_A_RETRY = 0.6
"""Share of its time that a request must have left to be sent again."""

ANSWERS_PER_RETRY = 10
MOST_RETRIES = 10
"""A retry is paid for by ten answers, and ten can be saved up: an outage is not doubled by retries."""

log = logging.getLogger(__name__)


class Breaker:
    """Whether requests are sent to the ensemble: opened by unanswered ones or lost canaries, closed by a canary."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._ready = metrics.ready
        self._failures = 0
        self.is_open = False

    def check(self) -> None:
        """Raises Unavailable while it is open."""
        if self.is_open:
            raise Unavailable("the serving stages do not answer")

    def failed(self) -> None:
        """A request was not answered."""
        self._failures += 1
        if self._failures >= FAILURES_IN_A_ROW and not self.is_open:
            log.warning("%d requests in a row were not answered", self._failures)
            self.open()

    def answered(self) -> None:
        """A request was answered. That does not close the breaker: it may have been sent before it opened."""
        self._failures = 0

    def open(self) -> None:
        """Send none from now on."""
        self.is_open = True
        self._ready.set(0)

    def close(self) -> None:
        """Send all from now on."""
        self.is_open, self._failures = False, 0
        self._ready.set(1)


class RetryBudget:
    """Earned by answers, spent by retries."""

    def __init__(self) -> None:
        self._answers = MOST_RETRIES * ANSWERS_PER_RETRY

    def earn(self) -> None:
        """A request was answered."""
        self._answers = min(MOST_RETRIES * ANSWERS_PER_RETRY, self._answers + 1)

    def spend(self) -> bool:
        """Whether a retry can be paid for."""
        if self._answers < ANSWERS_PER_RETRY:
            return False
        self._answers -= ANSWERS_PER_RETRY
        return True


class EnsembleCalls:
    """What a request's way to the ensemble goes through."""

    def __init__(self, ensemble: Ensemble, breaker: Breaker, metrics: GatewayMetrics) -> None:
        self._ensemble = ensemble
        self._breaker = breaker
        self._budget = RetryBudget()
        self._retries = metrics.retries

    async def infer(self, request: CandidateRequest, deadline: float, request_id: str) -> EnsembleAnswer:
        """As `Ensemble.infer`, until `deadline` in seconds of `time.monotonic`.

        An unanswered request is sent once more if most of its time is left: to another Triton if there are several.
        """
        start = time.monotonic()
        try:
            return await self._once(request, deadline, request_id)
        except Unavailable:
            left = (deadline - time.monotonic()) / max(deadline - start, 1e-9)
            if self._breaker.is_open or left < TIME_LEFT_FOR_A_RETRY:
                raise
            if not self._budget.spend():
                self._retries.labels("refused").inc()
                raise
        try:
            answer = await self._once(request, deadline, request_id)
        except (Unavailable, DeadlineExceeded):
            self._retries.labels("failed").inc()
            raise
        self._retries.labels("answered").inc()
        return answer

    async def _once(self, request: CandidateRequest, deadline: float, request_id: str) -> EnsembleAnswer:
        timeout_s = deadline - time.monotonic()
        sent = replace(request, remaining_ms=int(timeout_s * 1000))
        try:
            answer = await self._ensemble.infer(sent, timeout_s, request_id)
        except Unavailable:
            self._breaker.failed()
            raise
        self._breaker.answered()
        self._budget.earn()
        return answer
