"""Releases on disk: published whole, refused when anything differs."""

import json

import numpy as np
import pytest

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease
from pinrec_core.release import (
    ItemTable,
    ReleaseFacts,
    ServingState,
    activate,
    list_releases,
    open_release,
    publish,
    serving_state,
    write_serving_state,
)
from pinrec_core.schema import Vocabulary

FACTS = ReleaseFacts(item_embedder="a" * 64, index_item_embedder="a" * 64, watermark_ms=7, dataset="toy")
ITEMS = ItemTable(
    ids=np.array([-5, 3, 2**62]),
    types=np.array([0, 1, 0], np.uint8),
    content=np.ones((3, 2), np.int8),
    scale=np.ones(3, np.float32),
)


def write(folder):
    (folder / "config.json").write_text(json.dumps(Config().to_dict()))
    vocabulary = Vocabulary(("save",), ("save",), ("home",))
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
    ITEMS.save(folder / "items")


def visible(root):
    """Names that are no lock file."""
    return sorted(path.name for path in root.iterdir() if path.suffix != ".lock")


def test_publish_open_and_look_up(tmp_path):
    assert publish(tmp_path, FACTS, write) == 1
    assert publish(tmp_path, FACTS, write) == 2
    assert list_releases(tmp_path) == [1, 2]
    release = open_release(tmp_path, 2)
    assert release.config == Config()
    assert release.vocabulary.outcomes == ("save",)
    assert release.manifest["watermark_ms"] == 7
    assert release.content_dim == 2
    assert release.items.rows(np.array([2**62, 0, -5, 2**63 - 1])).tolist() == [2, -1, 0, -1]


def test_an_export_that_another_overtakes_takes_the_next_number(tmp_path, monkeypatch):
    assert publish(tmp_path, FACTS, write) == 1
    looks = iter([[], [1]])  # the first look is from before the other's rename
    monkeypatch.setattr("pinrec_core.release.publishing.list_releases", lambda root: next(looks))
    assert publish(tmp_path, FACTS, write) == 2
    assert open_release(tmp_path, 2).number == 2
    assert visible(tmp_path) == ["1", "2"]


def test_a_failing_write_leaves_nothing(tmp_path):
    def half(folder):
        write(folder)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        publish(tmp_path, FACTS, half)
    assert visible(tmp_path) == []


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


MUTATIONS = {
    "truncated": (lambda r: (r / "items/ids.npy").write_bytes(b"x"), "items/ids.npy has 1 bytes"),
    "flipped": (lambda r: _flip(r / "items/content.npy"), "items/content.npy does not match"),
    "missing": (lambda r: (r / "vocabulary.json").unlink(), "vocabulary.json is missing"),
    "added": (lambda r: (r / "extra.bin").write_bytes(b""), "extra.bin is not in the manifest"),
    "no manifest": (lambda r: (r / "manifest.json").unlink(), "manifest.json is missing"),
    "garbled manifest": (lambda r: (r / "manifest.json").write_text("{"), "manifest.json is not readable JSON"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_changed_release_is_refused_with_the_reason(tmp_path, name):
    publish(tmp_path, FACTS, write)
    mutate, reason = MUTATIONS[name]
    mutate(tmp_path / "1")
    with pytest.raises(InvalidRelease, match=reason):
        open_release(tmp_path, 1)


def test_an_index_of_another_item_embedder_is_refused(tmp_path):
    facts = ReleaseFacts(item_embedder="a" * 64, index_item_embedder="b" * 64, watermark_ms=0, dataset="toy")
    publish(tmp_path, facts, write)
    with pytest.raises(InvalidRelease, match=r"bbbbbbbbbbbb.*aaaaaaaaaaaa"):
        open_release(tmp_path, 1)


def test_a_release_under_another_number_is_refused(tmp_path):
    publish(tmp_path, FACTS, write)
    (tmp_path / "1").rename(tmp_path / "9")
    with pytest.raises(InvalidRelease, match="manifest of release 1"):
        open_release(tmp_path, 9)


def test_activation_keeps_the_one_before_open_and_refuses_a_broken_one(tmp_path):
    for _ in range(3):
        publish(tmp_path, FACTS, write)
    assert activate(tmp_path, 1) == ServingState(active=1, open=(1,))
    assert activate(tmp_path, 2) == ServingState(active=2, open=(1, 2), previous=1)
    assert activate(tmp_path, 2) == ServingState(active=2, open=(2,), previous=1)
    assert activate(tmp_path, 1) == ServingState(active=1, open=(2, 1), previous=2)
    (tmp_path / "3/vocabulary.json").unlink()
    with pytest.raises(InvalidRelease, match="release 3"):
        activate(tmp_path, 3)
    assert serving_state(tmp_path).active == 1


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", "7", "", '{"active": "x", "open": [1]}', '{"active": 1, "open": 1}', '{"active": 2, "open": [1]}'],
)
def test_a_serving_state_that_says_something_else_is_refused(tmp_path, text):
    """Who follows the file goes on with what is open; an error of another type would end the process."""
    (tmp_path / "serving.json").write_text(text)
    with pytest.raises(InvalidRelease, match=r"serving"):
        serving_state(tmp_path)


def test_serving_state(tmp_path):
    with pytest.raises(InvalidRelease, match=r"serving\.json is missing"):
        serving_state(tmp_path)
    write_serving_state(tmp_path, ServingState(active=2, open=(1, 2)))
    assert serving_state(tmp_path) == ServingState(active=2, open=(1, 2))
    with pytest.raises(InvalidRelease, match="at most 2"):
        write_serving_state(tmp_path, ServingState(active=3, open=(1, 2, 3)))
    with pytest.raises(InvalidRelease, match="active"):
        write_serving_state(tmp_path, ServingState(active=3, open=(1, 2)))
