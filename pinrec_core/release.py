"""Releases on disk: immutable folders that hold a model, its item table and its index together. numpy only.

    releases/
      serving.json          {"active": 2, "open": [1, 2]}: what stages hold open and what the gateway admits
      2/
        manifest.json       sha256 and size of every file, fingerprints, watermark, offline metrics
        config.json  vocabulary.json
        decoder.safetensors            everything but the ID embedding
        id_embedding.pt  id_tables/    TorchScript module; its tables as separate memory-mapped files
        items/  popular/  text_encoder/  index/  display/

A release is written beside its final name and renamed into place, so a half-written one is never seen under a number.
Arrays are `.npy` opened with `mmap_mode="r"` and `allow_pickle=False`: no pickle on the load path.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import Config, config_from_dict
from pinrec_core.errors import InvalidRelease
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder

FORMAT = 1
MAX_OPEN = 2
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class ItemTable:
    """Every item that a release knows.

    ids int64 [N] sorted, types uint8 [N], content int8 [N, D_sem] with scale float32 [N].
    """

    ids: NDArray[np.int64]
    types: NDArray[np.uint8]
    content: NDArray[np.int8]
    scale: NDArray[np.float32]

    def rows(self, item_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 where the table lacks it: int64 [n] -> int64 [n]."""
        if not len(self.ids):
            return np.full(len(item_ids), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.ids, item_ids), len(self.ids) - 1)
        return np.where(self.ids[at] == item_ids, at, -1)

    def save(self, folder: Path) -> None:
        """Write the four arrays into `folder`."""
        folder.mkdir(parents=True)
        for name in ("ids", "types", "content", "scale"):
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def open(cls, folder: Path) -> ItemTable:
        """Memory-map what `save` wrote."""
        return cls(**{name: open_array(folder / f"{name}.npy") for name in ("ids", "types", "content", "scale")})


def open_array(path: Path) -> NDArray[Any]:
    """Memory-map one `.npy` read-only, never through pickle. Raises InvalidRelease."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidRelease(f"{path.parent.name}/{path.name} cannot be opened: {type(error).__name__}") from error
    return array


@dataclass(frozen=True)
class Release:
    """One opened release."""

    path: Path
    number: int
    manifest: Mapping[str, Any]
    config: Config
    vocabulary: Vocabulary

    @cached_property
    def items(self) -> ItemTable:
        """The item table, memory-mapped."""
        return ItemTable.open(self.path / "items")

    @cached_property
    def popular(self) -> NDArray[np.int64]:
        """Most engaged pins by (surface code, outcome): int64 [num_surfaces + 1, A, P], -1 padded; surface 0 = all."""
        return open_array(self.path / "popular" / "ids.npy")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """Encoder of search queries (and of items that came without an embedding)."""
        return TextEncoder.load(self.path / "text_encoder")

    @property
    def content_dim(self) -> int:
        """D_sem."""
        return int(self.items.content.shape[1])


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
    metrics: Mapping[str, Any] = field(default_factory=dict)


def publish(root: Path, facts: ReleaseFacts, write: Callable[[Path], None]) -> int:
    """Call `write(folder)` on a staging folder, add the manifest and rename it to the next number.

    Nothing is left under a number if `write` fails. Returns the number.
    """
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=root))
    try:
        write(staging)
        manifest = {"format": FORMAT, **vars(facts), "files": _checksums(staging)}
        staging.chmod(0o755)
        while not _take_number(root, staging, manifest, number := max(list_releases(root), default=0) + 1):
            pass
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return number


def _take_number(root: Path, staging: Path, manifest: Mapping[str, Any], number: int) -> bool:
    """Rename `staging` to `number`. Returns whether the number was free: another export may have been faster."""
    _write_durably(staging / "manifest.json", {**manifest, "release": number})
    try:
        os.rename(staging, root / str(number))
    except OSError:
        if not (root / str(number)).exists():
            raise
        return False
    return True


def list_releases(root: Path) -> list[int]:
    """Numbers of the releases under `root`, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if re.fullmatch(r"[1-9]\d*", p.name) and p.is_dir())


def open_release(root: Path, number: int, verify: bool = True) -> Release:
    """Open `root/number`; with `verify`, every file's size and sha256 is checked.

    Raises InvalidRelease with the reason.
    """
    path = root / str(number)
    manifest = _read_json(path / "manifest.json", f"release {number}")
    if manifest.get("format") != FORMAT:
        raise InvalidRelease(f"release {number} has format {manifest.get('format')!r}; allowed: {FORMAT}")
    if manifest.get("release") != number:
        raise InvalidRelease(f"release {number} has a manifest of release {manifest.get('release')!r}")
    if verify:
        verify_files(path, manifest, number)
    if manifest["item_embedder"] != manifest["index_item_embedder"]:
        raise InvalidRelease(
            f"release {number}: the index was made by item embedder {manifest['index_item_embedder'][:12]}, "
            f"the release holds {manifest['item_embedder'][:12]}"
        )
    return Release(
        path=path,
        number=number,
        manifest=manifest,
        config=config_from_dict(_read_json(path / "config.json", f"release {number}")),
        vocabulary=Vocabulary.from_dict(_read_json(path / "vocabulary.json", f"release {number}")),
    )


def verify_files(path: Path, manifest: Mapping[str, Any], number: int) -> None:
    """Hold every file of a release to its manifest. Raises InvalidRelease naming the first that differs."""
    listed = manifest.get("files", {})
    present = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {"manifest.json"}
    for name in sorted(set(listed) | present):
        if name not in present:
            raise InvalidRelease(f"release {number}: file {name} is missing")
        if name not in listed:
            raise InvalidRelease(f"release {number}: file {name} is not in the manifest")
        size = (path / name).stat().st_size
        if size != listed[name]["bytes"]:
            raise InvalidRelease(f"release {number}: file {name} has {size} bytes; manifest: {listed[name]['bytes']}")
        if sha256_of(path / name) != listed[name]["sha256"]:
            raise InvalidRelease(f"release {number}: file {name} does not match its sha256")


@dataclass(frozen=True)
class ServingState:
    """Which release the gateway admits requests for, and which ones stages hold open (at most two)."""

    active: int
    open: tuple[int, ...]


def serving_state(root: Path) -> ServingState:
    """Read `serving.json`. Raises InvalidRelease if there is none yet, or it says something else."""
    values = _read_json(root / "serving.json", "serving state")
    try:
        state = ServingState(active=int(values["active"]), open=tuple(int(n) for n in values["open"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRelease('serving state: serving.json must look like {"active": 2, "open": [1, 2]}') from error
    _check_state(state)
    return state


def activate(root: Path, number: int) -> ServingState:
    """Verify release `number` and make it the active one; the one that was active stays open beside it.

    Raises InvalidRelease, and changes nothing, if the release is not whole.
    """
    open_release(root, number, verify=True)
    first = not (root / "serving.json").exists()
    before = () if first else (serving_state(root).active,)
    state = ServingState(active=number, open=(*(n for n in before if n != number), number))
    write_serving_state(root, state)
    return state


def write_serving_state(root: Path, state: ServingState) -> None:
    """Replace `serving.json` atomically."""
    _check_state(state)
    _write_durably(root / "serving.json", {"active": state.active, "open": list(state.open)})


def _check_state(state: ServingState) -> None:
    if state.active not in state.open or len(state.open) > MAX_OPEN:
        raise InvalidRelease(f"serving state {state} must hold its active release and at most {MAX_OPEN} open ones")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _checksums(folder: Path) -> dict[str, dict[str, Any]]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): {"sha256": sha256_of(p), "bytes": p.stat().st_size} for p in files}


def _read_json(path: Path, what: str) -> Any:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InvalidRelease(f"{what}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise InvalidRelease(f"{what}: {path.name} is not readable JSON") from error
    if not isinstance(values, dict):
        raise InvalidRelease(f"{what}: {path.name} is not a JSON object")
    return values


def _write_durably(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON beside `path`, sync it and rename it into place, so that no reader sees half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with beside.open("w") as file:
        json.dump(values, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
