import asyncio

import pytest

from services.common.streams import in_order


class Worker:
    """Finishes a request when its event is set."""

    def __init__(self, count):
        self.done = [asyncio.Event() for _ in range(count)]
        self.begun, self.cancelled = [], []

    async def __call__(self, request):
        self.begun.append(request)
        try:
            await self.done[request].wait()
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        if request == 13:
            raise ValueError("unlucky")
        return request * 10


async def numbers(count):
    for number in range(count):
        yield number


async def collect(results, into):
    async for result in results:
        into.append(result)


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_results_come_in_order_whichever_is_done_first():
    worker = Worker(3)
    for event in reversed(worker.done):
        event.set()
    assert [result async for result in in_order(numbers(3), worker, 2)] == [0, 10, 20]


async def test_no_more_than_the_limit_is_begun():
    worker = Worker(10)
    results = in_order(numbers(10), worker, 3)
    first = asyncio.ensure_future(anext(results))
    await settle()
    assert worker.begun == [0, 1, 2]
    worker.done[1].set()
    await settle()
    assert worker.begun == [0, 1, 2]  # 1 is done, but cannot be handed out before 0
    worker.done[0].set()
    assert await first == 0
    second = asyncio.ensure_future(anext(results))
    await settle()
    assert await second == 10
    assert worker.begun == [0, 1, 2, 3]
    await results.aclose()
    assert worker.cancelled == [2, 3]


async def test_an_answer_does_not_wait_for_the_next_request():
    """A sender may want the first answer before it sends the second request."""
    answered = asyncio.Event()

    async def asks():
        yield 0
        await answered.wait()
        yield 1

    worker = Worker(2)
    worker.done[0].set()
    worker.done[1].set()
    results = in_order(asks(), worker, 8)
    assert await anext(results) == 0
    answered.set()
    assert [result async for result in results] == [10]


async def test_the_first_failure_ends_it_after_the_results_before_it():
    worker = Worker(16)
    for event in worker.done[:14]:
        event.set()
    got = []
    with pytest.raises(ValueError, match="unlucky"):
        await collect(in_order(numbers(16), worker, 4), got)
    assert got == [number * 10 for number in range(13)]
    assert worker.cancelled == [14, 15]


async def test_what_reading_raises_comes_after_the_results_before_it():
    async def broken():
        yield 0
        raise OSError("gone")

    worker = Worker(1)
    worker.done[0].set()
    got = []
    with pytest.raises(OSError, match="gone"):
        await collect(in_order(broken(), worker, 2), got)
    assert got == [0]
