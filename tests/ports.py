"""Ports for the servers that tests start."""

from __future__ import annotations

import os
import random
import socket

_BELOW_EPHEMERAL = range(12_000, 32_000)
"""No connection that somebody opens is given one of these, so that they are still free when the server starts."""

_RNG = random.Random(os.getpid())
_given: set[int] = set()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """As many that nothing listens on, none of them twice."""
    found: list[int] = []
    while len(found) < count:
        port = _RNG.choice(_BELOW_EPHEMERAL)
        if port not in _given and _is_free(host, port):
            _given.add(port)
            found.append(port)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """One of them."""
    return free_ports(1, host)[0]


def free_run(length: int, host: str = "127.0.0.1") -> int:
    """The first of so many ports in a row that nothing listens on."""
    while True:
        first = free_ports(1, host)[0]
        rest = range(first + 1, first + length)
        if not _given & set(rest) and all(_is_free(host, port) for port in rest):
            _given.update(rest)
            return first


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
