"""The folder of batch views: what the daily job writes and every reader follows.

    DEST/current.json                 {"version": 3}: replaced atomically, the only file that ever changes
    DEST/3/manifest.json              what version 3 is made of (`ViewManifest`)
    DEST/3/bucket=007/*.parquet       rows of the users of a bucket, by user, time and event id

A version is written beside its final name, synced, renamed, and only then named by current.json: a reader sees the old
version or the new one, whole.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pinrec_core.errors import InvalidData, Unavailable
from pinrec_core.release.files import sha256_of, sync, write_json

CURRENT = "current.json"
MANIFEST = "manifest.json"
FORMAT = 2
_STAGING = ".staging-"
_LOCK = ".lock"


@dataclass(frozen=True)
class ViewManifest:
    """What one version holds and what it was made from."""

    watermark_ms: int
    """Time of the newest event, Unix milliseconds."""
    num_events: int
    num_users: int
    log: str
    """Folder or URL of the event log."""
    definition: dict[str, Any]
    """What the rows are by definition; another one needs a full rebuild."""
    partitions: dict[str, dict[str, Any]]
    """By landing day: how many files, what tells whether they change, how many rows, how many of them set aside."""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By path inside the version: sha256 and bytes."""
    version: int = 0
    format: int = FORMAT


def current_version(dest: Path) -> int | None:
    """The version that current.json names, None if there is none yet. Raises InvalidData if it cannot be read."""
    try:
        version = json.loads((dest / CURRENT).read_text())["version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidData(f'batch view {dest.name!r}: {CURRENT} must say {{"version": <number>}}') from error
    if type(version) is not int or version < 1:
        raise InvalidData(f"batch view {dest.name!r}: {CURRENT} names version {version!r}; allowed: a number from 1")
    return version


def read_manifest(dest: Path, version: int) -> ViewManifest:
    """The manifest of a version. Raises InvalidData."""
    where = f"batch view {dest.name!r}, version {version}"
    try:
        values = json.loads((dest / str(version) / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise InvalidData(f"{where} has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise InvalidData(f"{where}: {MANIFEST} is not readable JSON") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InvalidData(f"{where}: {MANIFEST} must say format {FORMAT}")
    names = {one.name for one in fields(ViewManifest)}
    if set(values) != names or values["version"] != version:
        raise InvalidData(f"{where}: {MANIFEST} must have version {version} and the keys {', '.join(sorted(names))}")
    return ViewManifest(**values)


def verify_files(dest: Path, manifest: ViewManifest) -> list[Path]:
    """The Parquet files of a version in their order, each held to its size and sha256. Raises InvalidData."""
    folder = dest / str(manifest.version)
    where = f"batch view {dest.name!r}, version {manifest.version}"
    for name, facts in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
            digest = sha256_of(folder / name) if size == facts["bytes"] else ""
        except OSError as error:
            raise InvalidData(f"{where}: file {name} cannot be read: {error.strerror}") from error
        except (KeyError, TypeError) as error:
            raise InvalidData(f"{where}: {MANIFEST} does not say size and sha256 of {name}") from error
        if size != facts["bytes"]:
            raise InvalidData(f"{where}: file {name} has {size} bytes; manifest: {facts['bytes']}")
        if digest != facts.get("sha256"):
            raise InvalidData(f"{where}: file {name} does not match its sha256")
    return [folder / name for name in sorted(manifest.files)]


@contextmanager
def staging_folder(dest: Path) -> Iterator[Path]:
    """A folder in `dest` to write the next version into, for one process at a time; gone afterwards if not published.

    What a killed job left is removed. Raises InvalidData where `dest` holds anything but batch views, Unavailable
    while another process is writing.
    """
    _check_is_ours(dest)
    dest.mkdir(parents=True, exist_ok=True)
    with (dest / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(f"another batch-view job is writing to {dest.name!r}: wait until it has ended") from error
        for left in dest.glob(f"{_STAGING}*"):
            shutil.rmtree(left)
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=dest))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def publish(dest: Path, staging: Path, manifest: ViewManifest, keep: int) -> ViewManifest:
    """Make the Parquet files under `staging` the next version and flip current.json to it; keep the newest `keep`."""
    version = max(versions(dest), default=0) + 1
    parts = sorted(staging.rglob("*.parquet"))
    files = {str(p.relative_to(staging)): {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in parts}
    manifest = replace(manifest, version=version, files=files)
    (staging / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, sort_keys=True))
    staging.chmod(0o755)
    for path in (*parts, staging / MANIFEST, *{p.parent for p in parts}, staging):
        sync(path)
    os.rename(staging, dest / str(version))
    sync(dest)
    write_json(dest / CURRENT, {"version": version})
    for old in versions(dest)[:-keep]:
        shutil.rmtree(dest / str(old))
    return manifest


def versions(dest: Path) -> list[int]:
    """Every version that lies in `dest`, ascending."""
    return sorted(int(path.name) for path in dest.iterdir() if path.name.isdigit()) if dest.is_dir() else []


def _check_is_ours(dest: Path) -> None:
    if not dest.exists():
        return
    if not dest.is_dir():
        raise InvalidData(f"{str(dest)!r} is a file: name a folder for the batch views")
    strangers = sorted(p.name for p in dest.iterdir() if not (p.name.isdigit() or p.name.startswith(".")))
    strangers = [name for name in strangers if name != CURRENT]
    if strangers:
        raise InvalidData(f"{str(dest)!r} holds {strangers[0]!r}, so it is no folder of batch views: name another one")
