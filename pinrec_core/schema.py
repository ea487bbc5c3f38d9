"""The words of an event log and their integer codes. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.errors import InvalidRequest

SEARCH_ACTION = "search"
"""Action of a search query in a history; never an outcome."""

UNCONDITIONED_OUTCOME = "any"
"""The one outcome of a `uc` model, whose output head is conditioned on no action."""

UNKNOWN_CODE = 0
"""Code of an action or surface outside the vocabulary, and of padding."""

FIRST_WALL_CLOCK_MS = 1_000_000
"""A timestamp below this (17 minutes into 1970) gives the order only: the model sees it as masked."""

MAX_SEEN_ITEMS = 2_000
"""Longest `seen_item_ids` that travels with a request (newest kept)."""


class ItemType(IntEnum):
    """Kinds of items; the integer is what histories and item tables store (uint8)."""

    PIN = 0
    SEARCH_QUERY = 1


ITEM_TYPE_NAMES = tuple(t.name.lower() for t in ItemType)


@dataclass(frozen=True)
class Vocabulary:
    """Names of one release and their codes.

    `positive_actions` are the engagements that make a target, in outcome order (the order that breaks ties between
    equal shares). They are the outcomes, unless the model is `unconditioned` (variant `uc`), which has the one
    outcome `any`. Action and surface codes are `index + 1`; 0 is unknown.
    """

    positive_actions: tuple[str, ...]
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    search_surfaces: tuple[str, ...] = ()
    unconditioned: bool = False

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """What a budget may name."""
        return (UNCONDITIONED_OUTCOME,) if self.unconditioned else self.positive_actions

    @cached_property
    def _action_codes(self) -> dict[str, int]:
        return {name: i + 1 for i, name in enumerate(self.actions)}

    @cached_property
    def _surface_codes(self) -> dict[str, int]:
        return {name: i + 1 for i, name in enumerate(self.surfaces)}

    def action_code(self, name: str) -> int:
        """Code of an action, 0 if unknown."""
        return self._action_codes.get(name, UNKNOWN_CODE)

    def surface_code(self, name: str) -> int:
        """Code of a surface, 0 if unknown."""
        return self._surface_codes.get(name, UNKNOWN_CODE)

    def request_surface_code(self, name: str) -> int:
        """Code of a request's surface. Raises InvalidRequest if unknown."""
        if name not in self._surface_codes:
            raise InvalidRequest("surface", name, f"one of {list(self.surfaces)}")
        return self._surface_codes[name]

    def outcome_index(self, name: str) -> int:
        """Place of an outcome. Raises InvalidRequest if unknown."""
        if name not in self.outcomes:
            raise InvalidRequest("budget", name, f"outcomes {list(self.outcomes)}")
        return self.outcomes.index(name)

    @cached_property
    def outcome_of_action(self) -> NDArray[np.int32]:
        """int32 [num_actions + 1]: outcome index of each action code, -1 where the action makes no target."""
        table = np.full(len(self.actions) + 1, -1, dtype=np.int32)
        for code, action in enumerate(self.actions, start=1):
            if action in self.positive_actions:
                table[code] = 0 if self.unconditioned else self.positive_actions.index(action)
        return table

    @cached_property
    def action_of_outcome(self) -> NDArray[np.int32]:
        """int32 [num_outcomes]: action code that a generated embedding of each outcome carries when fed back."""
        if self.unconditioned:
            return np.zeros(1, dtype=np.int32)
        return np.array([self.action_code(name) for name in self.positive_actions], dtype=np.int32)

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Vocabulary:
        """Inverse of `to_dict`."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
