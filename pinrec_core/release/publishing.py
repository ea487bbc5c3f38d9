"""Putting releases under a number, and taking old ones away. What has a number is whole, always."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pinrec_core.errors import InvalidRequest
from pinrec_core.release.files import lock, sha256_of, sync, write_json
from pinrec_core.release.layout import FORMAT, list_releases, open_folder, read_manifest
from pinrec_core.release.serving import activation_lock, serving_state

_STAGING = ".staging-"
_PUBLISHING = ".publishing.lock"
"""Shared by all who are writing a release; whoever gets it alone knows that every staging folder is left over."""


@dataclass(frozen=True)
class ReleaseFacts:
    """What the manifest says beside the files' checksums."""

    item_embedder: str
    """Fingerprint of the item embedder's weights."""
    index_item_embedder: str
    """Fingerprint of the item embedder that made the index's vectors."""
    watermark_ms: int
    """Newest event the release was trained on."""
    dataset: str
    items_sequence: int = 0
    """Changes of the item log up to this number are inside the release."""
    metrics: Mapping[str, Any] = field(default_factory=dict)


def publish(root: Path, facts: ReleaseFacts, write: Callable[[Path], None]) -> int:
    """Call `write(folder)` on a staging folder, add the manifest and rename it to the next number.

    Nothing is left under a number if `write` fails or the process dies. Returns the number.
    """
    with _staging(root) as staging:
        write(staging)
        return _take_number(root, staging, {"format": FORMAT, **vars(facts), "files": _checksums(staging)})


def publish_folder(root: Path, folder: Path) -> int:
    """Take over a finished release that was made elsewhere, as the next number under `root`. Returns the number.

    The copy is held to the manifest before it gets a number. Raises InvalidRelease if it is not whole.
    """
    manifest = read_manifest(folder)
    with _staging(root) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True, symlinks=True)
        open_folder(staging, manifest["release"])
        return _take_number(root, staging, manifest)


@contextmanager
def _staging(root: Path) -> Iterator[Path]:
    """A new folder beside the numbers, removed if what happens in it fails."""
    root.mkdir(parents=True, exist_ok=True)
    with lock(root / _PUBLISHING, shared=True):
        staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=root))
        try:
            yield staging
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def _take_number(root: Path, staging: Path, manifest: Mapping[str, Any]) -> int:
    """Rename `staging` to the next number, once its bytes are on disk."""
    staging.chmod(0o755)
    for path in staging.rglob("*"):
        sync(path)
    while True:
        number = max(list_releases(root), default=0) + 1
        write_json(staging / "manifest.json", {**manifest, "release": number})
        try:
            os.rename(staging, root / str(number))
        except OSError:
            if not (root / str(number)).exists():
                raise
            continue  # another export was faster
        sync(root)
        return number


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}


@dataclass(frozen=True)
class Collected:
    """What `collect` took away: releases, and how many files and folders that killed commands had left over."""

    releases: tuple[int, ...]
    leftovers: int


def collect(root: Path, keep: int) -> Collected:
    """Remove all but the `keep` newest releases; never one that is active, open or the one to roll back to.

    Raises InvalidRequest for a `keep` below 1, InvalidRelease without a readable serving.json, ReleasesLocked.
    """
    if keep < 1:
        raise InvalidRequest("keep", keep, "1 or more")
    with activation_lock(root):
        state = serving_state(root)  # without it nobody can say which release is served
        used = {state.active, *state.open, state.previous}
        old = [number for number in list_releases(root)[:-keep] if number not in used]
        halves = list(root.glob(".serving.json.*"))  # of an activation that was killed while it wrote
        for half in halves:
            half.unlink()
        leftovers = len(halves) + _remove_staging(root)
        for number in old:  # renamed first: what is half removed has no number
            nameless = tempfile.mkdtemp(prefix=_STAGING, dir=root)
            os.rename(root / str(number), nameless)
            shutil.rmtree(nameless)
        return Collected(tuple(old), leftovers)


def _remove_staging(root: Path) -> int:
    """Remove staging folders, unless a release is being written right now. Returns how many went."""
    try:
        with lock(root / _PUBLISHING, wait=False):
            leftovers = list(root.glob(_STAGING + "*"))
            for leftover in leftovers:
                shutil.rmtree(leftover)
            return len(leftovers)
    except BlockingIOError:
        return 0
