"""The tokens file: who may call a service, with which scopes and how much. It holds hashes, never a token.

    [clients.ranking]
    scopes = ["read"]
    sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]   # newest last
    requests_per_second = 500.0
    burst = 1000
    requests_per_day = 10000000

A token is 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess from a dictionary.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from pinrec_core.errors import InvalidConfig
from services.common.limits import NO_LIMITS, Limits

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCOPES = ("read", "append", "admin")

PREFIX = "pinrec_"
"""Every token begins with it, so that scanners of repositories and logs can find one that leaked."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEYS = ("scopes", "sha256", *(field.name for field in fields(Limits)))


@dataclass(frozen=True)
class Client:
    """One caller. `digests` are the SHA-256 of its tokens, newest last: two while one is being replaced."""

    name: str
    scopes: tuple[str, ...]
    digests: tuple[str, ...]
    limits: Limits = NO_LIMITS


def new_token() -> str:
    """A token that nobody has: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """What the tokens file holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def checked_name(name: str) -> str:
    """`name` if a client may be called so; raises InvalidConfig."""
    if not _NAME.fullmatch(name):
        raise InvalidConfig(f"client has value {name!r}; allowed: 1 to 64 of a-z, 0-9, - and _, not - or _ first")
    return name


def read_clients(path: Path) -> dict[str, Client]:
    """Clients by name. Raises InvalidConfig naming the file, the client and the key."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path}: not a tokens file: {error}") from error
    table = document.pop("clients", {})
    if document or not isinstance(table, dict):
        raise InvalidConfig(f"{path}: has {sorted(document) or 'clients'}; allowed: only tables [clients.NAME]")
    try:
        clients = {name: _client(name, entry) for name, entry in table.items()}
        _check_distinct(clients)
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error.message}") from error
    return clients


def _client(name: str, entry: Any) -> Client:
    checked_name(name)
    if not isinstance(entry, dict) or (unknown := sorted(set(entry) - set(_KEYS))):
        raise InvalidConfig(f"clients.{name} has {unknown if isinstance(entry, dict) else entry!r}; allowed: {_KEYS}")
    scopes, digests = (_strings(name, key, entry.get(key, [])) for key in ("scopes", "sha256"))
    if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
        raise InvalidConfig(f"clients.{name}.scopes has value {list(scopes)}; allowed: one or more of {list(SCOPES)}")
    if not all(_DIGEST.fullmatch(digest) for digest in digests):
        raise InvalidConfig(f"clients.{name}.sha256 has a value that is no SHA-256; allowed: 64 hexadecimal digits")
    try:
        limits = Limits(**{key: entry[key] for key in entry if key not in ("scopes", "sha256")})
    except InvalidConfig as error:
        raise InvalidConfig(f"clients.{name}.{error.message}") from error
    return Client(name, scopes, digests, limits)


def _strings(name: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidConfig(f"clients.{name}.{key} has value {value!r}; allowed: a list of strings")
    return tuple(value)


def _check_distinct(clients: Mapping[str, Client]) -> None:
    owner: dict[str, str] = {}
    for name, client in clients.items():
        for digest in client.digests:
            if owner.setdefault(digest, name) != name:
                raise InvalidConfig(f"clients.{name} and clients.{owner[digest]} have the same token")


def write_clients(path: Path, clients: Mapping[str, Client]) -> None:
    """Replace the file in one step, readable by its owner and group; services that follow it take it up."""
    text = "# Written by `pinrec token`. Hashes only: a lost token is replaced, not found here.\n"
    text += "".join(_entry(clients[name]) for name in sorted(clients))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.chmod(0o640)
        beside.replace(path)
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be written: {error.strerror}") from error


def _entry(client: Client) -> str:
    limits = {key: value for key, value in vars(client.limits).items() if value}
    lines = [f"{key} = [{', '.join(quoted)}]" for key, quoted in _lists(client).items()]
    return "\n".join(
        ["", f"[clients.{client.name}]", *lines, *(f"{key} = {value}" for key, value in limits.items()), ""]
    )


def _lists(client: Client) -> dict[str, list[str]]:
    """Scopes and digests hold no character that TOML would want escaped."""
    return {"scopes": [f'"{one}"' for one in client.scopes], "sha256": [f'"{one}"' for one in client.digests]}
