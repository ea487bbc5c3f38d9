"""Tables of a TOML file as frozen dataclasses; an unknown key or a wrong value is refused with what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pinrec_core.errors import InvalidConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    import tomli as tomllib

T = TypeVar("T")

_LISTS = {str: "strings", int: "integers"}
"""What a list may hold, and its word."""


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values of a file. Raises InvalidConfig, in which the file is called `what`."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise InvalidConfig(f"{what} {str(path)!r} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{what} {str(path)!r} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{what} {str(path)!r} is not TOML: {error}") from error


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass, and the dataclasses in its fields, from plain values; what is left out has its default.

    Fields may be dataclasses, literals, str, int, float, bool, tuples of str or int, and mappings of str to float.
    Raises InvalidConfig naming the key (behind `prefix`), its value and what is allowed.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InvalidConfig(f"unknown key {prefix + key!r}; known: {known}")
    return cls(**{key: _converted(hints[key], value, prefix + key) for key, value in values.items()})


def _converted(hint: Any, value: Any, key: str) -> Any:
    if is_dataclass(hint) or get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise InvalidConfig(f"{key} has value {value!r}; allowed: a table [{key}]")
        if get_origin(hint) is dict:
            return {name: _converted(get_args(hint)[1], each, f"{key}.{name}") for name, each in value.items()}
        return build(hint, value, prefix=f"{key}.")  # type: ignore[arg-type]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InvalidConfig(f"{key} has value {value!r}; allowed: one of {list(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if not isinstance(value, list | tuple) or not all(type(each) is kind for each in value):
            raise InvalidConfig(f"{key} has value {value!r}; allowed: a list of {_LISTS[kind]}")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InvalidConfig(f"{key} has value {value!r}; allowed: {hint.__name__}")
    return value
