"""What a service with a port does with `OpenReleases`: open what serving.json lists, and tell what is open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Generic, TypeVar, cast

from pinrec_core.errors import InvalidRelease, PinrecError, ReleaseNotOpen
from pinrec_core.release import serving_state
from pinrec_core.serving.open_releases import OpenReleases, Stage

_LOOK_S = 0.02

S = TypeVar("S", bound=Stage)


class ServedReleases(Generic[S]):
    """Each release that `root/serving.json` lists, opened in the background. One thread at a time may use it."""

    def __init__(self, root: Path, releases: OpenReleases) -> None:
        self._root = root
        self._releases = releases

    def get(self, number: int) -> S:
        """What was opened for a release. Raises ReleaseNotOpen, or InvalidRelease saying why it cannot be opened."""
        return cast(S, self._releases.get(number))

    def open_numbers(self) -> list[int]:
        """Which of the listed releases are open; asking makes new ones open."""
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
