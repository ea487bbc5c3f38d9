"""Copies of the realtime view under one folder, made while the service goes on."""

from __future__ import annotations

import re
import time
from pathlib import Path

from pinrec_core.errors import InvalidRequest, NotSetUp
from services.signals.store import TendedStore

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_ALLOWED = "up to 100 letters, digits, '-', '_' and '.', not beginning with '.'"


class Backups:
    """Named copies of `store` in `folder`; None = the service was not told where copies go."""

    def __init__(self, store: TendedStore, folder: Path | None) -> None:
        self._store = store
        self._folder = folder

    def make(self, name: str) -> tuple[int, int]:
        """Copy the store to a new folder `name`.

        Returns the copy's bytes and the time, Unix milliseconds, before which every acknowledged event is in it. Raises
        InvalidRequest for a name that cannot be or is taken, NotSetUp without a folder or a store that copies itself,
        and Unavailable if the copy could not be written.
        """
        if self._folder is None:
            raise NotSetUp("this signal service makes no backups: start it with --backups FOLDER")
        if not _NAME.fullmatch(name):
            raise InvalidRequest("name", name, _ALLOWED)
        copy = self._folder / name
        if copy.exists():
            raise InvalidRequest("name", name, "a name that no backup has yet")
        taken_ms = int(time.time() * 1_000)
        self._store.backup(copy)
        return sum(file.stat().st_size for file in copy.iterdir()), taken_ms
