"""Fifty ways to damage a real release: each is refused with the reason, and what is served stays as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
from pinrec_core.errors import InvalidRelease
from pinrec_core.golden import add_golden
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import ServingState, activate, open_release, write_serving_state
from pinrec_core.serving.open_releases import InlineExecutor, OpenReleases
from pinrec_core.train.export import export

CONFIG = config_from_dict(
    {
        "data": {"content_dim": 8},
        "model": {"hidden_dim": 16, "num_heads": 2, "embedding_dim": 8, "id_dim": 4, "hash_rows": 50, "hash_dim": 4},
        "retrieve": {"popular_per_list": 5},
    }
)
FILES = (
    "decoder.safetensors",
    "id_embedding.pt",
    "id_tables/shard-00000.f16",
    "items/ids.npy",
    "items/content.npy",
    "items/scale.npy",
    "popular/ids.npy",
    "index/ids.npy",
    "config.json",
    "vocabulary.json",
    "golden/requests.json",
)
"""Of each kind that a release holds."""


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def swap_in(path: Path, name: str) -> None:
    """The file of the other release."""
    shutil.copyfile(path.parents[name.count("/") + 1] / "1" / name, path)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lie(folder: Path, name: str, **facts: object) -> None:
    """Let the manifest say something else of a file."""
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder / "manifest.json", files={**files, name: {**files.get(name, {}), **facts}})


def as_link(path: Path) -> None:
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def half_written(folder: Path) -> None:
    """As a copy that was cut off: nothing after the first few files."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file())[5:]:
        path.unlink()


MANIFEST = "manifest.json"
MUTATIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} truncated": (lambda r, n=name: truncate(r / n), f"{name} has .* bytes") for name in FILES},
    **{f"{name} flipped": (lambda r, n=name: flip_middle(r / n), f"{name} does not match") for name in FILES},
    **{f"{name} missing": (lambda r, n=name: (r / n).unlink(), f"{name} is missing") for name in FILES},
    "first bit of the weights": (lambda r: flip(r / "decoder.safetensors", 0), "does not match"),
    "last bit of the weights": (lambda r: flip(r / "decoder.safetensors", -1), "does not match"),
    "weights of the other release": (lambda r: swap_in(r / "decoder.safetensors", "decoder.safetensors"), "not match"),
    "index of the other release": (lambda r: swap_in(r / "index/index.faiss", "index/index.faiss"), "does not match"),
    "ID tables of the other release": (lambda r: swap_in(r / FILES[2], FILES[2]), "does not match"),
    "manifest of the other release": (lambda r: swap_in(r / MANIFEST, MANIFEST), "has a manifest of release 1"),
    "two files swapped": (lambda r: (rename(r, FILES[3], "x"), rename(r, FILES[4], FILES[3]), rename(r, "x", FILES[4])),
                          "has .* bytes|does not match"),
    "a file added": (lambda r: (r / "items/extra.npy").write_bytes(b""), "extra.npy is not in the manifest"),
    "a file renamed": (lambda r: rename(r, "items/ids.npy", "items/id.npy"), "is not in the manifest"),
    "a link instead of a file": (lambda r: as_link(r / "items/ids.npy"), "is a link"),
    "half written": (half_written, "is missing"),
    "no manifest": (lambda r: (r / MANIFEST).unlink(), "manifest.json is missing"),
    "manifest truncated": (lambda r: truncate(r / MANIFEST), "manifest.json is not readable JSON"),
    "manifest without files": (lambda r: edit(r / MANIFEST, files=None), "manifest.json has files None"),
    "manifest with a list of files": (lambda r: edit(r / MANIFEST, files=[]), "manifest.json has files"),
    "another format": (lambda r: edit(r / MANIFEST, format=2), "has format 2; allowed: 1"),
    "another number": (lambda r: edit(r / MANIFEST, release=7), "manifest of release 7"),
    "index of another item embedder": (lambda r: edit(r / MANIFEST, index_item_embedder="b" * 64), "made by .* bbbbb"),
    "item embedder without a name": (lambda r: edit(r / MANIFEST, item_embedder=None), "has item_embedder None"),
    "another checksum": (lambda r: lie(r, FILES[0], sha256="0" * 64), "decoder.safetensors does not match"),
    "another size": (lambda r: lie(r, FILES[0], bytes=1), "manifest: 1"),
    "a file that is outside": (lambda r: lie(r, "../1/config.json", sha256="0", bytes=1), "config.json is missing"),
    "a file without a checksum": (lambda r: lie(r, FILES[0], sha256=None), "bytes and sha256 of decoder"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Two whole releases of two models; 1 is active."""
    root = tmp_path_factory.mktemp("mutations")
    SyntheticWorld(SyntheticSpec(users=10, items=40, events=300)).write(root / "data")
    dataset = open_dataset(root / "data", CONFIG)
    golden = partial(add_golden, titles=dataset.titles, request_time_ms=dataset.watermark_ms)
    for _ in range(2):
        model = PinRec(CONFIG, dataset.vocabulary, dataset.items.content.shape[1])
        export(model, dataset, root / "releases", add_golden=golden)
    activate(root / "releases", 1)
    return root / "releases"


class NumberStage:
    def __init__(self, release):
        self.number = release.number

    def run(self, batch):
        return [self.number] * len(batch)


def test_there_are_fifty():
    assert len(MUTATIONS) >= 50


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_damaged_release_is_refused_and_the_served_one_untouched(good, tmp_path, name):
    root = tmp_path / "releases"
    shutil.copytree(good, root)
    served = OpenReleases(root, NumberStage, executor=InlineExecutor())
    served.wait()
    before = (root / "serving.json").read_bytes()
    open_release(root, 2)
    mutate, reason = MUTATIONS[name]
    mutate(root / "2")
    for attempt in (open_release, activate):
        with pytest.raises(InvalidRelease, match=reason):
            attempt(root, 2)
    assert (root / "serving.json").read_bytes() == before
    write_serving_state(root, ServingState(1, (1, 2)))  # whoever writes it: no stage opens the damaged one
    with pytest.raises(InvalidRelease, match=reason):
        served.get(2)
    assert served.get(1).number == 1
    open_release(root, 1)
