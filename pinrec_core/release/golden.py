"""Golden requests: what a release answered in the process that exported it, to hold the serving stack to.

They ask for a user whom no log holds, so an answer depends on the release alone: start token, surface, budget, search
query, exclusions. `releases/<n>/golden/requests.json` is under the manifest like every other file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pinrec_core.errors import InvalidRelease
from pinrec_core.messages import CandidateRequest
from pinrec_core.release.files import read_json
from pinrec_core.release.layout import Release

CANARY_USER_ID = -(2**63)
"""A user that no log holds: served from the start token."""

_FILE = "golden/requests.json"


@dataclass(frozen=True)
class GoldenRequest:
    """One request in the release's codes, and the items that came back when it was exported.

    `counts`: candidates by outcome, in outcome order. `next_item_ids`: what comes back where all expected items are
    gone, so that items deleted since the export do not make a healthy release look damaged.
    """

    surface: int
    counts: tuple[int, ...]
    search_query: str
    exclude_item_ids: tuple[int, ...]
    request_time_ms: int
    expected_item_ids: tuple[int, ...] = ()
    next_item_ids: tuple[int, ...] = ()

    def to_request(self, release: int, remaining_ms: int) -> CandidateRequest:
        """What is sent to the stages."""
        return CandidateRequest(
            user_id=CANARY_USER_ID,
            surface=self.surface,
            counts=np.array(self.counts, dtype=np.int32),
            search_query=self.search_query,
            exclude_item_ids=np.array(self.exclude_item_ids, dtype=np.int64),
            include_seen=True,
            request_time_ms=self.request_time_ms,
            release=release,
            remaining_ms=remaining_ms,
        )

    def overlap(self, item_ids: Iterable[int], newer: Iterable[int] = ()) -> float:
        """Share of the answer's places that hold what may be there: at most 1; 1 if no item is expected.

        Expected items may, and those next in line, and `newer` ones, which came after the release.
        """
        if not self.expected_item_ids:
            return 1.0
        may_be_there = {*self.expected_item_ids, *self.next_item_ids, *newer}
        return min(1.0, len(may_be_there.intersection(item_ids)) / len(self.expected_item_ids))


def write_golden(folder: Path, requests: Iterable[GoldenRequest]) -> None:
    """Write them into a release folder that is being made."""
    path = folder / _FILE
    path.parent.mkdir()
    path.write_text(json.dumps({"requests": [asdict(request) for request in requests]}))


def read_golden(release: Release) -> tuple[GoldenRequest, ...]:
    """Raises InvalidRelease if the release has none, or they are damaged."""
    if not (release.path / _FILE).exists():
        raise InvalidRelease(
            f"release {release.number} has no golden requests: export it again, or activate it --offline"
        )
    rows: Any = read_json(release.path / _FILE, f"release {release.number}").get("requests")
    try:
        made = tuple(_request_of(row) for row in rows)
    except (TypeError, AttributeError) as error:
        raise InvalidRelease(f"release {release.number}: {_FILE} does not hold golden requests") from error
    if not made:
        raise InvalidRelease(f"release {release.number}: {_FILE} holds no request")
    return made


def _request_of(row: dict[str, Any]) -> GoldenRequest:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
    return GoldenRequest(**values)
