"""What a load test asks for: users, surfaces, budgets and sizes of a profile, completed by the active release."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.plan import TrafficPlan
from pinrec_core.errors import InvalidConfig
from pinrec_core.release import open_release, serving_state
from pinrec_core.schema import Vocabulary
from services.cli.recommend import parse_budget
from services.proto.candidates_pb2 import GetCandidatesRequest

FIRST_NEW_USER = 1 << 40
"""Ids from here on are nobody's of the log."""


@dataclass(frozen=True)
class Traffic:
    """Requests are drawn from each of these, surfaces by their weights."""

    plan: TrafficPlan
    user_ids: Sequence[int]
    surfaces: Mapping[str, float]
    search_surfaces: Sequence[str]
    budgets: Sequence[Mapping[str, float]]

    @classmethod
    def of(cls, plan: TrafficPlan, releases: Path) -> Traffic:
        """Raises InvalidConfig, and InvalidRelease where names are left to a release that is missing."""
        vocabulary = Vocabulary((), (), ())
        if not (plan.surfaces and plan.budgets) or plan.search_queries:
            vocabulary = open_release(releases, serving_state(releases).active, verify=False).vocabulary
        budgets = [parse_budget(text) for text in plan.budgets] or _budgets_of(vocabulary)
        surfaces = plan.surfaces or dict.fromkeys(vocabulary.surfaces, 1.0)
        return cls(plan, _user_ids(plan.users), surfaces, vocabulary.search_surfaces, budgets)

    def draw(self, rng: random.Random) -> GetCandidatesRequest:
        """One request."""
        surface = rng.choices(list(self.surfaces), list(self.surfaces.values()))[0]
        is_new = rng.random() < self.plan.new_users
        takes_query = surface in self.search_surfaces and self.plan.search_queries
        return GetCandidatesRequest(
            user_id=rng.randrange(FIRST_NEW_USER, 1 << 62) if is_new else rng.choice(self.user_ids),
            surface=surface,
            budget=rng.choice(self.budgets),
            num_candidates=rng.choice(self.plan.num_candidates),
            search_query=rng.choice(self.plan.search_queries) if takes_query else "",
            exclude_item_ids=rng.sample(range(1 << 40), self.plan.excluded) if rng.random() < 0.25 else [],
        )


def _budgets_of(vocabulary: Vocabulary) -> list[dict[str, float]]:
    alone = [{outcome: 1.0} for outcome in vocabulary.outcomes]
    return alone if len(alone) == 1 else [*alone, dict.fromkeys(vocabulary.outcomes, 1.0)]


def _user_ids(text: str) -> Sequence[int]:
    first, dash, last = text.partition("-")
    if dash and first.isdigit() and last.isdigit() and int(first) <= int(last):
        return range(int(first), int(last) + 1)
    if not Path(text).is_file():
        raise InvalidConfig(f"traffic.users has value {text!r}; allowed: FIRST-LAST or a file of ids")
    words = Path(text).read_text().split()
    try:
        ids = [int(word) for word in words]
    except ValueError as error:
        raise InvalidConfig(f"traffic.users has value {text!r}, where {error}; allowed: one id a line") from error
    if not ids:
        raise InvalidConfig(f"traffic.users has value {text!r}, which holds none; allowed: one id a line")
    return ids
