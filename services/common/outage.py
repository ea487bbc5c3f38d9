"""Telling once that something is broken, however many calls meet it."""

from __future__ import annotations

import logging
import threading
import time


class Outage:
    """One warning when something begins to fail, one line when it works again. Thread-safe."""

    def __init__(self, name: str, log: logging.Logger) -> None:
        """`name` says in the log what fails, for example "signal service"."""
        self._name = name
        self._log = log
        self._lock = threading.Lock()
        self._reason = ""
        self._told: set[str] = set()
        self._failures = 0
        self._since_s = 0.0

    @property
    def reason(self) -> str:
        """Why it fails now; empty while it works."""
        return self._reason

    def failed(self, reason: str) -> None:
        """Count a failure; the first of a period is logged, and one whose reason is new in it."""
        with self._lock:
            if not self._failures:
                self._since_s = time.monotonic()
            self._failures += 1
            is_news, self._reason = reason not in self._told, reason
            self._told.add(reason)
        if is_news:
            self._log.warning("%s fails: %s", self._name, reason)

    def ended(self) -> None:
        """It works; logged if it did not before."""
        if not self._failures:  # the usual case takes no lock
            return
        with self._lock:
            failures, self._failures, self._reason = self._failures, 0, ""
            self._told.clear()
        if failures:
            lasted_s = time.monotonic() - self._since_s
            self._log.warning("%s works again after %d failures in %.1f s", self._name, failures, lasted_s)
