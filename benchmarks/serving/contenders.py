"""Contenders for one task, each in a process of its own, asked in turns: A B C A B C ...

Two OpenMP runtimes in one process cost a factor of two, and a machine that others use is faster at one moment than at
the next: so no two libraries share a process, and what is compared was measured within the same seconds.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import click
import numpy as np

from benchmarks.serving.timing import Times, median

Task = Callable[[int], Any]
"""Answers request number i; numbers come again."""
T = TypeVar("T")


@dataclass(frozen=True)
class Contender:
    """`make(*args)`, a function of a module, makes the task in the contender's process."""

    name: str
    make: Callable[..., Task]
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Running:
    """A contender's process."""

    name: str
    pid: int
    connection: Connection

    def times(self, first: int, count: int) -> list[float]:
        """Milliseconds of `count` requests, one after the other."""
        taken: list[float] = self._ask("times", first, count)
        return taken

    def answers(self, first: int, count: int) -> list[Any]:
        """What the task returns for `count` requests."""
        found: list[Any] = self._ask("answers", first, count)
        return found

    def _ask(self, what: str, first: int, count: int) -> Any:
        try:
            self.connection.send((what, first, count))
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise click.ClickException(f"{self.name}: its process ended, see above") from error


@dataclass(frozen=True)
class Measured:
    """Of each contender."""

    rounds: Mapping[str, list[list[float]]]
    """Milliseconds of each request, by round."""
    answers: Mapping[str, list[Any]]

    @property
    def times(self) -> Times:
        """The median of each round."""
        return {name: [median(taken) for taken in rounds] for name, rounds in self.rounds.items()}

    def percentiles(self, name: str) -> dict[str, float]:
        """Of all requests of a contender: p10, p50, p90 and p99."""
        points = np.percentile([taken for one in self.rounds[name] for taken in one], [10, 50, 90, 99])
        return dict(zip(("p10_ms", "p50_ms", "p90_ms", "p99_ms"), points.round(4).tolist(), strict=True))


@contextmanager
def running(contenders: Sequence[Contender]) -> Iterator[list[Running]]:
    """Start all, one after the other, each ready before the next begins; end them with the block."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        started = []
        for one in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_answer, args=(theirs, one.make, one.args), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)
            assert process.pid is not None
            started.append(Running(one.name, process.pid, ours))
            started[-1].answers(0, 0)
        yield started


def in_turns(contenders: Sequence[Contender], rounds: int, requests: int, answers: int = 0) -> Measured:
    """`rounds` x `requests` of each contender, and what it returned for the first `answers` requests.

    A round begins with two requests that are not counted: the caches held another contender's data.
    """
    taken: dict[str, list[list[float]]] = {one.name: [] for one in contenders}
    with running(contenders) as started:
        found = {one.name: one.answers(0, answers) for one in started}
        for number in range(rounds):
            for one in started:
                taken[one.name].append(one.times(number * requests, requests + 2)[2:])
    return Measured(taken, found)


def alone(function: Callable[..., T], *args: Any) -> T:
    """A function's result, from a process of its own."""
    with running([Contender(function.__name__, _once, (function, args))]) as (one,):
        answer: T = one.answers(0, 1)[0]
        return answer


def _once(function: Callable[..., T], args: tuple[Any, ...]) -> Task:
    return lambda _: function(*args)


def _answer(connection: Connection, make: Callable[..., Task], args: tuple[Any, ...]) -> None:
    """A contender's process: what is asked, until the other end is closed."""
    task = make(*args)
    try:
        while True:
            what, first, count = connection.recv()
            numbers = range(first, first + count)
            connection.send([_timed(task, i) for i in numbers] if what == "times" else [task(i) for i in numbers])
    except EOFError:
        return


def _timed(task: Task, number: int) -> float:
    started = time.perf_counter()
    task(number)
    return 1000 * (time.perf_counter() - started)
