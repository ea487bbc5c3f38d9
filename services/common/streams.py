"""Answering a stream of requests in order while several are being worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

Request = TypeVar("Request")
Result = TypeVar("Result")


async def in_order(
    requests: AsyncIterator[Request], work: Callable[[Request], Awaitable[Result]], in_flight: int
) -> AsyncGenerator[Result, None]:
    """The result of `work` on each request, in order, `in_flight` of them at once.

    Above that no request is read, so that the sender waits. Raises what reading or the first failing request raised,
    after the results of those before it; what was begun after it is cancelled.
    """
    started: asyncio.Queue[asyncio.Future[Result] | None] = asyncio.Queue()
    room = asyncio.Semaphore(in_flight)

    async def read() -> None:
        try:
            async for request in requests:
                await room.acquire()
                started.put_nowait(asyncio.ensure_future(work(request)))
        finally:
            started.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (result := await started.get()) is not None:
            yield await result
            room.release()
        await reader
    finally:
        left = [reader, *(started.get_nowait() or reader for _ in range(started.qsize()))]
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
