"""Which releases a stage holds open: those that `serving.json` lists, opened without stalling the ones that serve."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from pinrec_core.errors import InvalidRelease, PinrecError, ReleaseNotOpen
from pinrec_core.release import EVERYTHING, Release, open_release, serving_state
from pinrec_core.serving.error_words import UNEXPECTED

TURN_S = 0.3
"""Processes that serve on the same cores open a new release one after the other, each at its turn: all of them at once
took both of two cores, and the requests of that moment waited."""

log = logging.getLogger(__name__)


class Stage(Protocol):
    """One stage opened for one release: a result a request, in order; a PinrecError fails its request alone."""

    def run(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Answer a batch."""


OpenStage = Callable[[Release], Stage]


class InlineExecutor(Executor):
    """Runs what it is given at once, in the caller's thread: for a stage whose device state belongs to one thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` and keep its result or exception."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class OpenReleases:
    """Follows `root/serving.json`: closes what it no longer lists, opens what is new on `executor`.

    The default is a thread of its own for each opening, of ordinary priority: one that holds Python's lock and gets
    no core holds up the one that serves (with nice 10 and 19 the slowest answers became slower, not faster).
    A release that cannot be opened fails its own requests with the reason, until serving.json changes; the others stay.
    `parts` are the files and folders that the stage reads, and so holds to their checksums first. `turn` x `TURN_S`
    passes before an opening beside a release that serves.
    """

    def __init__(
        self,
        root: Path,
        open_stage: OpenStage,
        parts: tuple[str, ...] = EVERYTHING,
        executor: Executor | None = None,
        turn: int = 0,
    ) -> None:
        self._root = root
        self._open_stage = open_stage
        self._parts = parts
        self._executor = executor
        self._turn = turn
        self._opening: dict[int, Future[Stage]] = {}
        self._open: dict[int, Stage] = {}
        self._failed: dict[int, PinrecError] = {}
        self._listed: tuple[int, ...] = ()
        self._seen: tuple[int, int] | None = None

    def wait(self) -> None:
        """Look at serving.json and wait for what is being opened. Raises the first failure if nothing is open then."""
        self._follow()
        for future in self._opening.values():
            future.exception()
        self._collect()
        if not self._open:
            raise next(iter(self._failed.values()), InvalidRelease("serving.json lists no release"))

    def get(self, number: int) -> Stage:
        """The stage of a release. Raises ReleaseNotOpen, or why the release cannot be opened."""
        self._follow()
        if number in self._open:
            return self._open[number]
        raise self._failed.get(number) or ReleaseNotOpen(number, tuple(sorted(self._open)))

    def _follow(self) -> None:
        """Take up a changed serving.json; if it cannot be read, what is open stays."""
        try:
            stat = (self._root / "serving.json").stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._seen:
                self._listed = serving_state(self._root).open
                self._seen = stamp
                self._failed.clear()
                self._open_listed()
        except FileNotFoundError:
            log.warning("no release is active under %s yet: there is no serving.json", self._root)
        except (OSError, InvalidRelease) as error:
            log.warning("serving.json is not followed: %s", error)
        self._collect()

    def _open_listed(self) -> None:
        for number in set(self._open) - set(self._listed):
            log.info("closing release %d", number)
            del self._open[number]
        new = [number for number in self._listed if number not in self._open and number not in self._opening]
        if not new:
            return
        executor = self._executor or ThreadPoolExecutor(1, "open-release")
        for number in new:
            log.info("opening release %d", number)
            self._opening[number] = executor.submit(self._open_one, number, self._turn * TURN_S if self._open else 0.0)
        if self._executor is None:
            executor.shutdown(wait=False)  # the thread ends after the last opening, and its OpenMP team with it

    def _open_one(self, number: int, pause_s: float) -> Stage:
        time.sleep(pause_s)
        return self._open_stage(open_release(self._root, number, parts=self._parts))

    def _collect(self) -> None:
        """Take over what has been opened since the last look."""
        for number in [number for number, future in self._opening.items() if future.done()]:
            future = self._opening.pop(number)
            error = future.exception()
            if number not in self._listed:
                continue  # serving.json dropped it meanwhile
            if error is None:
                log.info("release %d is open", number)
                self._open[number] = future.result()
            else:
                log.error("release %d cannot be opened", number, exc_info=error)
                unknown = InvalidRelease(f"release {number}: {UNEXPECTED}")
                self._failed[number] = error if isinstance(error, PinrecError) else unknown
