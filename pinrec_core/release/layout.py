"""A release on disk: an immutable folder that holds a model, its item table and its index together. numpy only.

    releases/
      serving.json          {"active": 2, "open": [2], "previous": 1}: see `serving.py`
      2/
        manifest.json       sha256 and size of every file, fingerprints, watermark, offline metrics
        config.json  vocabulary.json
        decoder.safetensors            everything but the ID embedding
        id_embedding.pt  id_tables/    TorchScript module; its tables as separate memory-mapped files
        items/  popular/  text_encoder/  index/  display/  golden/

A release is written beside its final name and renamed into place, so a half-written one is never seen under a number.
Arrays are `.npy` opened with `mmap_mode="r"` and `allow_pickle=False`: no pickle on the load path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec_core.config import Config, config_from_dict
from pinrec_core.errors import InvalidConfig, InvalidRelease
from pinrec_core.release.files import read_json, sha256_of
from pinrec_core.schema import Vocabulary
from pinrec_core.text_encoder import TextEncoder

FORMAT = 1

EVERYTHING = ("",)
"""Parts of a release: all of it."""

_MANIFEST_FIELDS = {
    "release": int,
    "item_embedder": str,
    "index_item_embedder": str,
    "watermark_ms": int,
    "dataset": str,
    "items_sequence": int,
    "files": dict,
}


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

    @property
    def items_sequence(self) -> int:
        """Changes of the item log up to this number are inside; 0 = none is."""
        return int(self.manifest.get("items_sequence", 0))


def list_releases(root: Path) -> list[int]:
    """Numbers of the releases under `root`, ascending."""
    if not root.is_dir():
        return []
    return sorted(int(p.name) for p in root.iterdir() if re.fullmatch(r"[1-9]\d*", p.name) and p.is_dir())


def open_release(root: Path, number: int, verify: bool = True, parts: tuple[str, ...] = EVERYTHING) -> Release:
    """Open `root/number`. With `verify`, every file's size is held to the manifest, and the sha256 of those in `parts`.

    `parts` are files and folders of the release, so that a stage pays for the bytes that it reads and no others.
    Raises InvalidRelease with the reason.
    """
    if not (root / str(number)).is_dir():
        there = ", ".join(map(str, list_releases(root))) or "none"
        raise InvalidRelease(f"release {number} does not exist; there are: {there}")
    return open_folder(root / str(number), number, verify, parts)


def open_folder(path: Path, number: int, verify: bool = True, parts: tuple[str, ...] = EVERYTHING) -> Release:
    """Open the folder of release `number`, wherever it lies; else as `open_release`."""
    what = f"release {number}"
    manifest = read_manifest(path, what)
    if manifest["release"] != number:
        raise InvalidRelease(f"{what} has a manifest of release {manifest['release']!r}")
    if verify:
        verify_files(path, manifest, number, parts)
    if manifest["item_embedder"] != manifest["index_item_embedder"]:
        raise InvalidRelease(
            f"{what}: the index was made by item embedder {manifest['index_item_embedder'][:12]}, "
            f"the release holds {manifest['item_embedder'][:12]}"
        )
    return read_release(path, number, manifest)


def read_release(path: Path, number: int, manifest: Mapping[str, Any]) -> Release:
    """The release in a folder that may not be finished: nothing but its configuration and vocabulary is checked."""
    what = f"release {number}"
    config, vocabulary = (read_json(path / f"{name}.json", what) for name in ("config", "vocabulary"))
    try:
        return Release(path, number, manifest, config_from_dict(config), Vocabulary.from_dict(vocabulary))
    except InvalidConfig as error:
        raise InvalidRelease(f"{what}: config.json: {error.message}") from error
    except TypeError as error:
        raise InvalidRelease(f"{what}: vocabulary.json does not hold a vocabulary") from error


def read_manifest(path: Path, what: str = "manifest") -> dict[str, Any]:
    """The manifest of a release folder, with every field that opening reads. Raises InvalidRelease."""
    manifest = read_json(path / "manifest.json", what)
    if manifest.get("format") != FORMAT:
        raise InvalidRelease(f"{what} has format {manifest.get('format')!r}; allowed: {FORMAT}")
    for name, kind in _MANIFEST_FIELDS.items():
        if type(manifest.get(name)) is not kind:
            raise InvalidRelease(f"{what}: manifest.json has {name} {manifest.get(name)!r}; allowed: {kind.__name__}")
    for name, facts in manifest["files"].items():
        if not isinstance(facts, dict) or type(facts.get("bytes")) is not int or type(facts.get("sha256")) is not str:
            raise InvalidRelease(f"{what}: manifest.json does not give bytes and sha256 of {name}")
    return manifest


def verify_files(path: Path, manifest: Mapping[str, Any], number: int, parts: tuple[str, ...] = EVERYTHING) -> None:
    """Hold the files of a release to its manifest: names and sizes of all, sha256 of those in `parts`.

    Raises InvalidRelease naming the first that differs.
    """
    listed = manifest["files"]
    entries = [p for p in path.rglob("*") if p.is_symlink() or not p.is_dir()]
    present = {str(p.relative_to(path)): p for p in entries if p != path / "manifest.json"}
    for name in sorted(set(listed) | set(present)):
        what = f"release {number}: file {name}"
        if name not in present:
            raise InvalidRelease(f"{what} is missing")
        if name not in listed:
            raise InvalidRelease(f"{what} is not in the manifest")
        if present[name].is_symlink() or not present[name].is_file():
            raise InvalidRelease(f"{what} is a link or something else that may change; allowed: a file")
        size = present[name].stat().st_size
        if size != listed[name]["bytes"]:
            raise InvalidRelease(f"{what} has {size} bytes; manifest: {listed[name]['bytes']}")
    for name in sorted(listed):
        is_part = any(part in ("", name) or name.startswith(part + "/") for part in parts)
        if is_part and sha256_of(present[name]) != listed[name]["sha256"]:
            raise InvalidRelease(f"release {number}: file {name} does not match its sha256")
