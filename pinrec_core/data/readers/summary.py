"""What a reader reports when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReadSummary:
    """Counts of one conversion, for a person to check against the source."""

    users: int
    items: int
    events: Mapping[str, int]
    """Events written, by action."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Source rows that make no event, by reason."""

    def __str__(self) -> str:
        lines = [f"{self.users:,} users, {self.items:,} items, {sum(self.events.values()):,} events"]
        lines += [f"  {action}: {count:,}" for action, count in self.events.items()]
        lines += [f"  left out, {reason}: {count:,}" for reason, count in self.left_out.items()]
        return "\n".join(lines)
