"""What a load test asks for: users, surfaces and budgets, from the environment or from the active release.

PINREC_LOAD_USERS       user ids as FIRST-LAST, or a text file with one id a line        (default 1-1000)
PINREC_LOAD_SURFACES    home,search                     (default: the active release's, under PINREC_RELEASES)
PINREC_LOAD_BUDGETS     save=1;save=0.5,click=0.5       (default: each outcome alone, then all alike)
PINREC_LOAD_CANDIDATES  candidates a request                                             (default 100)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinrec_core.errors import InvalidConfig
from pinrec_core.release import open_release, serving_state
from pinrec_core.schema import Vocabulary
from services.cli.recommend import parse_budget
from services.proto.candidates_pb2 import GetCandidatesRequest

RELEASES = "work/releases"


@dataclass(frozen=True)
class Traffic:
    """Requests are drawn evenly from each of these."""

    user_ids: Sequence[int]
    surfaces: Sequence[str]
    budgets: Sequence[Mapping[str, float]]
    num_candidates: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Traffic:
        """Read the variables above. Raises InvalidConfig, and InvalidRelease where a release is needed and missing."""
        surfaces = [name for name in env.get("PINREC_LOAD_SURFACES", "").split(",") if name]
        budgets = [parse_budget(text) for text in env.get("PINREC_LOAD_BUDGETS", "").split(";") if text]
        if not (surfaces and budgets):
            vocabulary = _active_vocabulary(Path(env.get("PINREC_RELEASES", RELEASES)))
            surfaces = surfaces or list(vocabulary.surfaces)
            budgets = budgets or _budgets_of(vocabulary)
        user_ids = _user_ids(env.get("PINREC_LOAD_USERS", "1-1000"))
        return cls(user_ids, surfaces, budgets, int(env.get("PINREC_LOAD_CANDIDATES", "100")))

    def draw(self, rng: random.Random) -> GetCandidatesRequest:
        """One request."""
        return GetCandidatesRequest(
            user_id=rng.choice(self.user_ids),
            surface=rng.choice(self.surfaces),
            budget=rng.choice(self.budgets),
            num_candidates=self.num_candidates,
        )


def _active_vocabulary(root: Path) -> Vocabulary:
    return open_release(root, serving_state(root).active, verify=False).vocabulary


def _budgets_of(vocabulary: Vocabulary) -> list[dict[str, float]]:
    alone = [{outcome: 1.0} for outcome in vocabulary.outcomes]
    return alone if len(alone) == 1 else [*alone, dict.fromkeys(vocabulary.outcomes, 1.0)]


def _user_ids(text: str) -> Sequence[int]:
    first, dash, last = text.partition("-")
    if dash and first.isdigit() and last.isdigit() and int(first) <= int(last):
        return range(int(first), int(last) + 1)
    if not Path(text).is_file():
        raise InvalidConfig(f"PINREC_LOAD_USERS has value {text!r}; allowed: FIRST-LAST or a file of ids")
    return [int(line) for line in Path(text).read_text().split()]
