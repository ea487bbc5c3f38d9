"""Callers of a stack that something is done to: what they ask, and what each of them saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import grpc.aio
import numpy as np

from benchmarks.chaos.table import Row
from benchmarks.chaos.world import USERS
from loadtest.open_loop import Call, closed_loop, open_loop
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub

NUM_CANDIDATES = 50
DEADLINE_S = 1.0
CAPACITY_CALLERS = (8, 16, 32)
ANY_CALLERS = (1, 2, 3, 4, 5, 6, 8, 16, 32)
"""Numbers of callers among whose throughputs the capacity is looked for."""
P99_TIMES = 3.0
"""What is answered with a p99 of more lone callers' p99 than this does not count as capacity."""
FULL, REFUSED = "full", "RESOURCE_EXHAUSTED"

Send = Callable[[int], Awaitable[Any]]
"""Makes call number i."""


def request_of(number: int) -> GetCandidatesRequest:
    """Call i asks for user i's candidates, under one of five budgets."""
    share = number % 5 / 4
    return GetCandidatesRequest(
        user_id=1 + number * 7_919 % USERS,
        surface=("home", "related")[number % 2],
        budget={"save": share, "click": 1 - share} if 0 < share < 1 else {"save": 1.0},
        num_candidates=NUM_CANDIDATES,
    )


def kind_of(answer: GetCandidatesResponse) -> str:
    """What an answer was: in full, degraded with its reason, or something that no caller should ever meet."""
    if answer.degraded:
        return f"degraded: {answer.degraded_reason}"
    if all(candidate.filled for candidate in answer.candidates):
        return "NOT MARKED as degraded"
    return FULL if len(answer.candidates) == NUM_CANDIDATES else "SHORT"


def asker(channel: grpc.aio.Channel, deadline_s: float = DEADLINE_S) -> Send:
    """Makes call i and says what kind of answer came."""
    stub = CandidateServiceStub(channel)

    async def send(number: int) -> str:
        return kind_of(await stub.GetCandidates(request_of(number), timeout=deadline_s))

    return send


def seen(call: Call) -> str:
    """What the caller saw: the kind of its answer, or the status code."""
    return str(call.answer) if call.code is grpc.StatusCode.OK else call.code.name


def counted(calls: Sequence[Call]) -> dict[str, int]:
    """How many callers saw what, the most frequent first."""
    return dict(Counter(map(seen, calls)).most_common())


def words(counts: dict[str, int]) -> str:
    """Counts as a sentence."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "none"


@dataclass(frozen=True)
class Throughput:
    """What callers without a pause get: full answers a second, and their p99 in milliseconds."""

    callers: int
    rps: float
    p99_ms: float


async def throughputs(address: str, seconds: float, callers: Sequence[int] = CAPACITY_CALLERS) -> list[Throughput]:
    """Of each number of callers, after a round to warm up."""
    found = []
    async with grpc.aio.insecure_channel(address, QUICK_RECONNECT) as channel:
        for concurrency in (callers[-1], *callers):
            calls = await closed_loop(asker(channel, 5.0), concurrency, seconds)
            full = [call for call in calls if seen(call) == FULL]
            found.append(Throughput(concurrency, len(full) / seconds, percentile_ms(full, 99)))
    return found[1:]


async def capacity_rps(address: str, seconds: float, callers: Sequence[int] = CAPACITY_CALLERS) -> float:
    """Full answers a second: the best of some numbers of callers without a pause, after one round to warm up."""
    return max(one.rps for one in await throughputs(address, seconds, callers))


@dataclass(frozen=True)
class Capacity:
    """The most that callers without a pause get while their p99 is at most three times a lone caller's.

    Batches make many callers cheaper to answer than few, so more can be had for a longer wait.
    """

    unloaded: list[Call]
    """A lone caller's calls."""
    measured: list[Throughput]
    """Of each number of callers, the fewest first."""

    @property
    def rps(self) -> float:
        """Full answers a second."""
        return self._in_time.rps

    @property
    def _in_time(self) -> Throughput:
        bar_ms = P99_TIMES * percentile_ms(self.unloaded, 99)
        in_time = (one for one in self.measured if one.p99_ms <= bar_ms)
        return max(in_time, key=lambda one: one.rps, default=self.measured[0])

    def row(self) -> Row:
        """What is taken as capacity, and what is to be had for a longer wait."""
        most, peak = self._in_time, max(self.measured, key=lambda one: one.rps)
        return Row(
            f"capacity: most answers with a p99 of at most {P99_TIMES} times a lone caller's",
            "-",
            f"{most.rps:.1f}/s ({most.callers} callers, p99 {most.p99_ms:.0f} ms); at any p99 "
            f"{peak.rps:.1f}/s ({peak.callers} callers, p99 {peak.p99_ms:.0f} ms)",
            None,
            {"throughputs": [asdict(one) for one in self.measured]},
        )


async def measured_capacity(address: str, seconds: float, callers: Sequence[int] = ANY_CALLERS) -> Capacity:
    """Of a stack on which nothing else works; `seconds` for each number of callers, and twice that for a lone one."""
    async with grpc.aio.insecure_channel(address, QUICK_RECONNECT) as channel:
        await closed_loop(asker(channel), 1, seconds)
        unloaded = await closed_loop(asker(channel), 1, 2 * seconds)
    return Capacity(unloaded, await throughputs(address, seconds, callers))


def percentile_ms(calls: Sequence[Call], percent: float) -> float:
    """Milliseconds from the sending; NaN without calls."""
    sent = [1000 * (call.latency_s - call.late_s) for call in calls]
    return float(np.percentile(sent, percent)) if sent else float("nan")


class Load:
    """Calls at Poisson times for as long as the context is open; afterwards `calls` says what each of them saw."""

    def __init__(
        self, address: str, rate: float, deadline_s: float = DEADLINE_S, options: Any = QUICK_RECONNECT
    ) -> None:
        self._address = address
        self._rate = rate
        self._deadline_s = deadline_s
        self._options = options
        self._stop = asyncio.Event()
        self._kinds: deque[tuple[float, str]] = deque()
        self.calls: list[Call] = []

    async def __aenter__(self) -> Load:
        self._channel = grpc.aio.insecure_channel(self._address, self._options)
        send = asker(self._channel, self._deadline_s)

        async def noted(number: int) -> str:
            kind = "failed"
            try:
                kind = str(await send(number))
            except grpc.aio.AioRpcError as error:
                kind = REFUSED if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else kind
                raise
            finally:
                self._kinds.append((time.monotonic(), kind))
            return kind

        self._task = asyncio.create_task(open_loop(noted, self._rate, 36_000, stop=self._stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self.calls = await self._task
        await self._channel.close()

    async def settle(self, seconds: float, at_most: float) -> bool:
        """Wait until the calls of the last `seconds` were answered in full; False after `at_most` seconds.

        Some may have been refused for load, which the gateway does where a machine is busy with other things.
        """
        end, seconds_over = time.monotonic() + at_most, time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            while self._kinds and self._kinds[0][0] < now - seconds:
                self._kinds.popleft()
            kinds = Counter(kind for _, kind in self._kinds)
            if now >= seconds_over and set(kinds) <= {FULL, REFUSED} and kinds[FULL] > kinds[REFUSED]:
                return True
            await asyncio.sleep(0.05)
        return False


def recovery_s(calls: Sequence[Call], since_s: float) -> float:
    """Seconds from `since_s` to the sending of the last call that was not answered in full, nor refused for load."""
    return max([0.0, *(call.scheduled_s - since_s for call in calls if seen(call) not in (FULL, REFUSED))])
