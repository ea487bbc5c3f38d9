"""An open-loop driver: calls are sent when their time has come, whether or not earlier ones were answered.

Arrivals are Poisson, and a latency counts from the scheduled time, so that a stall is felt by every call that fell into
it. A closed loop would wait with the server and miss exactly those (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np


@dataclass(frozen=True)
class Call:
    """One call as its sender saw it. Times in seconds of `time.monotonic`; `late_s`: how late it was really sent."""

    scheduled_s: float
    done_s: float
    late_s: float
    code: grpc.StatusCode
    answer: Any = None

    @property
    def latency_s(self) -> float:
        """From the scheduled time to the answer."""
        return self.done_s - self.scheduled_s


async def open_loop(
    send: Callable[[int], Awaitable[Any]], rate: float, seconds: float, seed: int = 0, stop: asyncio.Event | None = None
) -> list[Call]:
    """Send call i with `send(i)` at Poisson arrivals of `rate` a second for `seconds`, or until `stop` is set.

    A call that fails by gRPC is a result with its code. Returns the calls by scheduled time.
    """
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(1, int(rate * seconds * 1.5 + 10)))
    start = time.monotonic()
    schedule = start + np.cumsum(gaps)
    tasks: list[asyncio.Task[Call]] = []
    for number, at in enumerate(schedule[schedule < start + seconds].tolist()):
        if stop is not None and stop.is_set():
            break
        if (wait := at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_call(send, number, at)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(send: Callable[[int], Awaitable[Any]], concurrency: int, seconds: float) -> list[Call]:
    """`concurrency` callers who each ask again as soon as they are answered: how capacity is measured."""
    end = time.monotonic() + seconds
    calls: list[Call] = []

    async def caller(first: int) -> None:
        number = first
        while (now := time.monotonic()) < end:
            calls.append(await _call(send, number, now))
            number += concurrency

    await asyncio.gather(*map(caller, range(concurrency)))
    return calls


async def _call(send: Callable[[int], Awaitable[Any]], number: int, at: float) -> Call:
    late, code, answer = time.monotonic() - at, grpc.StatusCode.OK, None
    try:
        answer = await send(number)
    except grpc.RpcError as error:
        code = error.code()
    return Call(at, time.monotonic(), late, code, answer)


def percentiles_ms(calls: Sequence[Call], *percents: float) -> list[float]:
    """Latency percentiles of the calls that were answered, in milliseconds; NaN if none was."""
    answered = [1000 * call.latency_s for call in calls if call.code is grpc.StatusCode.OK]
    return np.percentile(answered, percents).tolist() if answered else [float("nan")] * len(percents)
