"""Landing days: the partitions `events/day=YYYY-MM-DD/` of a log, by the day on which events reached it.

Late events land on a later day than they happened. None can happen after the day on which it landed, but for the skew
of clocks: what says so was stamped by a wrong clock and is set aside, or it would be every history's newest event for
ever.
"""

from __future__ import annotations

from datetime import date, timedelta

from pinrec_core.errors import InvalidData

LANDING_KEY = "day"
CLOCK_SKEW_MS = 5 * 60_000
"""How much later than the end of its landing day an event may say it happened."""
_EPOCH = date(1970, 1, 1)


def landing_day(path: str) -> str:
    """The landing day that a file's path inside the log names ("2024-05-31"); "" if none. Raises InvalidData."""
    named = [part.removeprefix(f"{LANDING_KEY}=") for part in path.split("/") if part.startswith(f"{LANDING_KEY}=")]
    if not named:
        return ""
    try:
        return date.fromisoformat(named[0]).isoformat()
    except ValueError as error:
        raise InvalidData(f"events/: partition {LANDING_KEY}={named[0]} must name a day, as YYYY-MM-DD") from error


def latest_ms(day: str) -> int:
    """Latest time that an event may bear which landed on `day`, Unix milliseconds; days are those of UTC."""
    end = date.fromisoformat(day) + timedelta(days=1) - _EPOCH
    return end // timedelta(milliseconds=1) + CLOCK_SKEW_MS
