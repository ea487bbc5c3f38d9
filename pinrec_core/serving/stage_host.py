"""Runs one stage inside Triton: requests by release, deadlines first, and no request fails because of another."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from pinrec_core.errors import DeadlineExceeded, PinrecError
from pinrec_core.serving.contract import STAGES, StageContract
from pinrec_core.serving.deadline import deadline_of, with_deadline
from pinrec_core.serving.error_words import UNEXPECTED
from pinrec_core.serving.log_lines import VARIABLE, stage_lines, start_logging
from pinrec_core.serving.open_releases import OpenReleases, OpenStage, Stage
from pinrec_core.serving.triton_io import StageAnswer

FIRST_TURN = 2
"""Of the stages to open a release: after items and signals, which they ask."""

log = logging.getLogger(__name__)


class StageHost:
    """Answers batches with the stages of `releases`; `now_ns` is this host's monotonic clock."""

    def __init__(self, name: str, releases: OpenReleases, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._name = name
        self._releases = releases
        self._now_ns = now_ns

    def run(self, batch: Sequence[Any]) -> list[StageAnswer[Any]]:
        """One answer a request, in order; never raises. A request that is already a PinrecError is its own answer.

        A group of requests of one release is one call of its stage. Requests whose deadline has passed are dropped
        before it, and `elapsed_us` is the group's time in the stage.
        """
        arrival_ns = self._now_ns()
        answers: list[StageAnswer[Any]] = [StageAnswer(PinrecError(UNEXPECTED))] * len(batch)
        groups: dict[int, list[int]] = {}
        for place, message in enumerate(batch):
            if isinstance(message, PinrecError):
                answers[place] = StageAnswer(message)
            else:
                groups.setdefault(message.release, []).append(place)
        for release, places in groups.items():
            group = self._run_group(release, [batch[place] for place in places], arrival_ns)
            for place, answer in zip(places, group, strict=True):
                answers[place] = answer
        return answers

    def _run_group(self, release: int, messages: list[Any], arrival_ns: int) -> list[StageAnswer[Any]]:
        start_ns = self._now_ns()
        in_time = [deadline_of(message, arrival_ns) > start_ns for message in messages]
        wanted = [with_deadline(message, arrival_ns) for message, ok in zip(messages, in_time, strict=True) if ok]
        try:
            values = self._run_apart(self._releases.get(release), wanted) if wanted else []
        except PinrecError as error:  # the release is not open here
            values = [error] * len(wanted)
        elapsed_us = (self._now_ns() - start_ns) // 1_000
        late = DeadlineExceeded(f"the deadline passed before {self._name}")
        ready = iter(values)
        return [StageAnswer(next(ready) if ok else late, release, elapsed_us) for ok in in_time]

    def _run_apart(self, stage: Stage, messages: list[Any]) -> list[Any]:
        """One batched call; if it fails, each request on its own, so that the one at fault fails alone."""
        try:
            return checked(stage.run(messages), len(messages))
        except PinrecError as error:  # the stage knows what is wrong, and with it all
            return [error] * len(messages)
        except Exception:
            log.exception("%s: a batch of %d failed", self._name, len(messages))
            if len(messages) == 1:
                return [PinrecError(UNEXPECTED)]
            return [value for message in messages for value in self._run_apart(stage, [message])]


def start_host(
    contract: StageContract, open_stage: OpenStage, parts: tuple[str, ...], executor: Executor | None = None
) -> StageHost:
    """The host of a Triton model: follows `$PINREC_RELEASES/serving.json`, with its releases open and logs on stderr.

    `parts` of a release are what the stage reads. Raises InvalidRelease if none of the listed releases can be opened,
    InvalidConfig for a log format that does not exist.
    """
    start_logging(stage_lines(contract.name, os.environ.get(VARIABLE, "text")))
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells at length which instruction sets it tried
    turn = FIRST_TURN + STAGES.index(contract) if executor is None else 0  # the caller's thread cannot wait
    releases = OpenReleases(Path(os.environ["PINREC_RELEASES"]), open_stage, parts, executor, turn)
    releases.wait()
    return StageHost(contract.name, releases)


def checked(values: Sequence[Any], expected: int) -> list[Any]:
    """`values` as a list; an answer too many or too few would be given to the wrong user."""
    if len(values) != expected:
        raise RuntimeError(f"{len(values)} results for {expected} requests")
    return list(values)
