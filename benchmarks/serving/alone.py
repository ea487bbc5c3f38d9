"""A stage, or the whole path of `pinrec_core.recommend`, alone in a process: what the stack is compared with.

The process has the threads that Triton gives a stage, and is asked over its standard input: "SIZE SECONDS" for batches
of so many recorded requests, one after another, for so long. It answers with a line of JSON. torch and faiss are never
in one process, except for the path in one process, which needs both.

    python -m benchmarks.serving.alone STAGE|path --releases DIR --batch-views DIR --messages DIR
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click

from benchmarks.serving.recorded import as_messages, inputs_of, record
from benchmarks.serving.workload import RECORDED, resolved
from pinrec_core.release import Release, open_release
from pinrec_core.serving.contract import STAGES
from services.triton.command import TritonOptions, environment
from services.triton.tools import locate

PATH = "path"
"""The whole path in one process."""
PRECISION = "PINREC_PRECISION"
LEAST_CALLS = 3
"""Even where they take longer than asked for."""

Run = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Timed:
    """Seconds of each call of one batch size, and CPU seconds of one request."""

    calls_s: list[float]
    cpu_s: float


class Alone:
    """Such a process, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self._answer()  # it is ready

    def time(self, size: int, seconds: float) -> Timed:
        """Batches of `size` for `seconds`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size} {seconds}\n")
        self._process.stdin.flush()
        return Timed(**self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with code {self._process.wait()}")
        return json.loads(line)


@contextmanager
def alone(what: str, releases: Path, batch_views: Path, messages: Path, users: int) -> Iterator[Alone]:
    """The process of a stage, or of `PATH`, which also writes `messages`. Raises RuntimeError if it ends."""
    folders = ("--releases", releases, "--batch-views", batch_views, "--messages", messages, "--users", users)
    line = [sys.executable, "-m", "benchmarks.serving.alone", what, *map(str, folders)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, env=stage_environment(releases), stdin=pipe, stdout=pipe, text=True)
    try:
        yield Alone(process)
    finally:
        process.kill()
        process.wait()


def stage_environment(releases: Path) -> dict[str, str]:
    """This process's environment with the threads of a stage inside Triton."""
    inside = environment(locate(), TritonOptions(releases))
    return {**os.environ, **{name: inside[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")}}


def open_stage(what: str, release: Release, batch_views: Path) -> Run:
    """What runs a batch. Each stage imports what it needs and nothing else."""
    if what == "fetch_signals":
        from pinrec_core.signals.batch_view import open_batch_view
        from pinrec_core.signals.fetch import FixedView, SignalFetcher
        from pinrec_core.signals.realtime import MemoryHistoryStore

        return SignalFetcher(release, FixedView(open_batch_view(batch_views)), MemoryHistoryStore()).run
    if what == "embed_items":
        from pinrec_core.model.id_embedding import IdEmbedder

        return IdEmbedder.open(release).run
    if what == "generate":
        from pinrec_core.generate.generator import Generator

        return Generator.open(release, "cpu", *decoder_of_environment()).run
    from pinrec_core.retrieve.search import Retriever

    return Retriever.open(release).run


def choose_precision() -> None:
    """Let the decoder multiply in what is fastest here, unless the environment says otherwise."""
    from pinrec_core.model.packed_linear import has_tiles

    os.environ.setdefault(PRECISION, "bfloat16" if has_tiles() else "float32")


def decoder_of_environment() -> tuple[str, str]:
    """Engine and precision, as the stage inside Triton takes them."""
    return os.environ.get("PINREC_DECODER") or "auto", os.environ.get(PRECISION) or "auto"


def open_path(release: Release, batch_views: Path, messages: Path, users: int) -> tuple[Run, list[Any]]:
    """The path in one process and requests for it; writes what travels between its stages."""
    from pinrec_core.recommend import Stages, recommend

    stages = Stages.open(release, batch_views)
    requests = [resolved(number, users, release) for number in range(RECORDED)]
    record(requests, stages, messages)
    return lambda batch: recommend(batch, stages), requests


def timed(run: Run, requests: Sequence[Any], size: int, seconds: float, first: int) -> Timed:
    """Call after call with the requests from `first` on, over and over; the first call does not count."""
    batches = ([requests[place % len(requests)] for place in range(at, at + size)] for at in count(first, size))
    run(next(batches))
    calls_s: list[float] = []
    cpu_began = time.process_time()
    while sum(calls_s) < seconds or len(calls_s) < LEAST_CALLS:
        batch = next(batches)
        began = time.perf_counter()
        run(batch)
        calls_s.append(time.perf_counter() - began)
    return Timed(calls_s, (time.process_time() - cpu_began) / (size * len(calls_s)))


@click.command()
@click.argument("what", type=click.Choice([PATH, *(stage.name for stage in STAGES)]))
@click.option("--releases", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--batch-views", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--messages", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--users", required=True, type=int)
def main(what: str, releases: Path, batch_views: Path, messages: Path, users: int) -> None:
    """Hold WHAT and time it on demand until standard input ends."""
    release = open_release(releases, 1, verify=False)
    if what == PATH:
        run, requests = open_path(release, batch_views, messages, users)
    else:
        [stage] = [stage for stage in STAGES if stage.name == what]
        run = open_stage(what, release, batch_views)
        requests = as_messages(stage.input, stage.inputs, inputs_of(messages, what))
    click.echo("{}")
    for turn, line in enumerate(sys.stdin):
        size, seconds = line.split()
        answer = timed(run, requests, int(size), float(seconds), first=turn * 37)
        click.echo(json.dumps(vars(answer)))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.alone")
