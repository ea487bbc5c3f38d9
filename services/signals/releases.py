"""The releases that the signal service joins content rows of. One thread at a time (the event loop) may use it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from pinrec_core.errors import InvalidRelease, PinrecError, ReleaseNotOpen
from pinrec_core.release import serving_state
from pinrec_core.serving.open_releases import OpenReleases
from pinrec_core.signals.batch_view import BatchView
from pinrec_core.signals.fetch import SignalFetcher
from pinrec_core.signals.realtime import HistoryStore

_LOOK_S = 0.02


class SignalReleases:
    """Follows `root/serving.json`: each release that it lists is opened in the background, by the first who asks."""

    def __init__(self, root: Path, batch_view: BatchView, store: HistoryStore) -> None:
        self._root = root
        self._releases = OpenReleases(root, lambda release: SignalFetcher(release, batch_view, store))

    def get(self, number: int) -> SignalFetcher:
        """The fetcher of a release. Raises ReleaseNotOpen, or InvalidRelease saying why it cannot be opened."""
        return cast(SignalFetcher, self._releases.get(number))

    def open_numbers(self) -> list[int]:
        """Which of the listed releases are open."""
        return [number for number in self._listed() if self._refusal(number) is None]

    async def settle(self) -> list[int]:
        """Wait until each listed release is open or refused. Returns the open ones."""
        while any(isinstance(self._refusal(number), ReleaseNotOpen) for number in self._listed()):
            await asyncio.sleep(_LOOK_S)
        return self.open_numbers()

    def _listed(self) -> tuple[int, ...]:
        """What serving.json lists; nothing while there is none that can be read."""
        try:
            return serving_state(self._root).open
        except InvalidRelease:
            return ()

    def _refusal(self, number: int) -> PinrecError | None:
        try:
            self._releases.get(number)
        except PinrecError as error:
            return error
        return None
