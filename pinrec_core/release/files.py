"""Files of the release store: read as JSON, written durably, hashed, locked."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pinrec_core.errors import InvalidRelease

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file; `what` it is of opens the message. Raises InvalidRelease."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InvalidRelease(f"{what}: {path.name} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidRelease(f"{what}: {path.name} is not readable JSON") from error
    if not isinstance(values, dict):
        raise InvalidRelease(f"{what}: {path.name} is not a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON beside `path`, sync it and rename it into place: a reader sees the old or the new, and no half."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as file:
        json.dump(values, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock(path: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it when the process dies, however it dies.

    `shared`: together with others who share it. Raises BlockingIOError if it is taken and `wait` is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield
