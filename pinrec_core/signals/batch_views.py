"""Follows the versions of a folder of batch views: the daily swap without a restart and without a pause."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from pinrec_core.errors import PinrecError
from pinrec_core.signals.batch_view import BatchView, open_batch_view
from pinrec_core.signals.view_folder import current_version

_LOOK_EVERY_S = 1.0

log = logging.getLogger(__name__)


class BatchViews:
    """The newest version that could be opened. Thread-safe; who holds a replaced view goes on reading it.

    A thread looks at current.json about every second, opens a new version beside the one that serves and flips when it
    is whole. A version that cannot be opened leaves the old one in place and is tried again.
    """

    def __init__(self, dest: Path | None, cache: Path | None = None, look_every_s: float = _LOOK_EVERY_S) -> None:
        """`dest` None: the empty view for ever. `cache`: see `open_batch_view`."""
        self._dest, self._cache, self._look_every_s = dest, cache, look_every_s
        self._view = BatchView.empty()
        self._problem = ""
        self._looked, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="batch-views", daemon=True)
        if dest is None:
            self._looked.set()
        else:
            self._thread.start()

    @property
    def problem(self) -> str:
        """Why the version that current.json names is not the one that serves; empty if it is."""
        return self._problem

    def current(self) -> BatchView:
        """The view to serve from; the empty one until a first version is open. Never waits."""
        return self._view

    def wait(self) -> BatchView:
        """The view, after the first version has been opened, or could not be (see `problem`)."""
        self._looked.wait()
        return self._view

    def close(self) -> None:
        """End the thread; views stay readable."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        assert self._dest is not None, "the thread runs only with a folder to follow"
        while not self._stopped.is_set():
            self._look(self._dest)
            self._looked.set()
            self._stopped.wait(self._look_every_s)

    def _look(self, dest: Path) -> None:
        try:
            if self._view.version == 0 or current_version(dest) != self._view.version:
                self._view = open_batch_view(dest, self._cache)
                log.info("batch view: version %d, watermark %d ms", self._view.version, self._view.watermark_ms)
            self._problem = ""
        except PinrecError as error:
            if error.message != self._problem:
                log.warning("batch view: version %d goes on: %s", self._view.version, error.message)
            self._problem = error.message
