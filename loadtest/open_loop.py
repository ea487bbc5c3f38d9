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
from numpy.typing import NDArray

REFUSED_PAUSE_S = 0.05


@dataclass(frozen=True)
class Call:
    """One call as its sender saw it. Times in seconds of `time.monotonic`; `late_s`: how late it was really sent."""

    scheduled_s: float
    done_s: float
    late_s: float
    code: grpc.StatusCode
    answer: Any = None
    details: str = ""
    """The words of a call that failed."""

    @property
    def latency_s(self) -> float:
        """From the scheduled time to the answer."""
        return self.done_s - self.scheduled_s


@dataclass(frozen=True)
class Bursts:
    """The rate is `times` as high for the last `seconds` of every `every_s` seconds."""

    times: float = 1.0
    every_s: float = 10.0
    seconds: float = 1.0


def arrivals(rate: float, seconds: float, seed: int = 0, bursts: Bursts = Bursts()) -> NDArray[np.float64]:
    """Poisson arrivals in seconds from the start, float64 [n], by thinning those of the highest rate."""
    rng, highest = np.random.default_rng(seed), max(1.0, bursts.times)
    gaps = rng.exponential(1 / (rate * highest), size=max(1, int(rate * highest * seconds * 1.5 + 10)))
    times = np.cumsum(gaps)
    in_burst = times % bursts.every_s >= bursts.every_s - bursts.seconds
    kept = rng.random(len(times)) * highest < np.where(in_burst, bursts.times, 1.0)
    return times[kept & (times < seconds)]


async def open_loop(
    send: Callable[[int], Awaitable[Any]],
    rate: float,
    seconds: float,
    seed: int = 0,
    stop: asyncio.Event | None = None,
    bursts: Bursts = Bursts(),
) -> list[Call]:
    """Send call i with `send(i)` at Poisson arrivals of `rate` a second for `seconds`, or until `stop` is set.

    A call that fails by gRPC is a result with its code. Returns the calls by scheduled time.
    """
    schedule = time.monotonic() + arrivals(rate, seconds, seed, bursts)
    tasks: list[asyncio.Task[Call]] = []
    for number, at in enumerate(schedule.tolist()):
        if stop is not None and stop.is_set():
            break
        if (wait := at - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(_call(send, number, at)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(send: Callable[[int], Awaitable[Any]], concurrency: int, seconds: float) -> list[Call]:
    """`concurrency` callers who each ask again as soon as they are answered: how capacity is measured.

    One that is refused waits for a moment, as it is told to.
    """
    end = time.monotonic() + seconds
    calls: list[Call] = []

    async def caller(first: int) -> None:
        number = first
        while (now := time.monotonic()) < end:
            calls.append(await _call(send, number, now))
            number += concurrency
            if calls[-1].code is grpc.StatusCode.RESOURCE_EXHAUSTED:
                await asyncio.sleep(REFUSED_PAUSE_S)

    await asyncio.gather(*map(caller, range(concurrency)))
    return calls


async def _call(send: Callable[[int], Awaitable[Any]], number: int, at: float) -> Call:
    late, code, answer, details = time.monotonic() - at, grpc.StatusCode.OK, None, ""
    try:
        answer = await send(number)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
    return Call(at, time.monotonic(), late, code, answer, details)


def percentiles_ms(calls: Sequence[Call], *percents: float) -> list[float]:
    """Latency percentiles of the calls that were answered, in milliseconds; NaN if none was."""
    answered = [1000 * call.latency_s for call in calls if call.code is grpc.StatusCode.OK]
    return np.percentile(answered, percents).tolist() if answered else [float("nan")] * len(percents)
