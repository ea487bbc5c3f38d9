"""Environment variables that are on or off."""

from __future__ import annotations

from collections.abc import Mapping

from pinrec_core.errors import InvalidConfig


def is_on(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the variable is 1. Raises InvalidConfig for anything but 0, 1 and nothing."""
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise InvalidConfig(f"{name} has value {value!r}; allowed: 0, 1")
    return value == "1"
