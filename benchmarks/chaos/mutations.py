"""Fifty ways to damage a release folder: cut, flipped, missing, foreign and half-written files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pinrec_core.errors import InvalidRelease
from pinrec_core.release import open_release

COUNT = 50


@dataclass(frozen=True)
class Mutation:
    """What is done to a release folder; `other` is a healthy release of another model."""

    name: str
    apply: Callable[[Path, Path], None]


def mutations(release: Path) -> list[Mutation]:
    """The first `COUNT` of: whole-folder damage, then one damage after the other for every file."""
    return list(islice(_all(release), COUNT))


def _all(release: Path) -> Iterator[Mutation]:
    yield Mutation("manifest missing, as if half-written", lambda folder, _: (folder / "manifest.json").unlink())
    yield Mutation("manifest empty", lambda folder, _: (folder / "manifest.json").write_text(""))
    yield Mutation("manifest of another release", lambda folder, other: _copy("manifest.json", other, folder))
    yield Mutation("unknown format", lambda folder, _: _edit(folder, format=99))
    yield Mutation("index of another item embedder", lambda folder, _: _edit(folder, index_item_embedder="0" * 64))
    yield Mutation("a file that the manifest lacks", lambda folder, _: (folder / "stranger").write_text("?"))
    names = sorted(str(p.relative_to(release)) for p in release.rglob("*") if p.is_file() and p.name != "manifest.json")
    weights = "decoder.safetensors"
    yield Mutation("weights of another model", lambda folder, other: _copy(weights, other, folder))
    for damage in (_flip, _truncate, _remove, _empty):
        for name in names:
            yield Mutation(f"{damage.__name__[1:]} {name}", lambda folder, _, name=name, do=damage: do(folder / name))


def _copy(name: str, source: Path, target: Path) -> None:
    shutil.copy(source / name, target / name)


def _edit(folder: Path, **values: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def copy_as(root: Path, source: int, number: int) -> Path:
    """A healthy copy of a release under another number."""
    folder = root / str(number)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / str(source), folder)
    _edit(folder, release=number)
    open_release(root, number)
    return folder


def refusal(activate: Callable[[], object]) -> str:
    """Why an activation was refused; empty if it was not."""
    try:
        activate()
    except InvalidRelease as error:
        return error.message
    return ""
