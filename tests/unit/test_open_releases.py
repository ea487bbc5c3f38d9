"""Which releases a stage holds open: real release folders, stages that only know their number."""

from __future__ import annotations

import json
from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease, ReleaseNotOpen
from pinrec_core.release import ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.schema import Vocabulary
from pinrec_core.serving.open_releases import TURN_S, InlineExecutor, OpenReleases

VOCABULARY = Vocabulary(("save",), ("save", "search"), ("home",))


class NumberStage:
    def __init__(self, release):
        self.number = release.number

    def run(self, batch):
        return [self.number] * len(batch)


class HeldExecutor(Executor):
    """Runs nothing until told to: the moment between two looks of a stage."""

    def __init__(self):
        self.held = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.held.append((future, fn, args))
        return future

    def release(self):
        for future, fn, args in self.held:
            future.set_result(fn(*args))
        self.held.clear()


@pytest.fixture
def root(tmp_path) -> Path:
    """Three releases, none active."""

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY.to_dict()))
        (folder / "decoder.safetensors").write_bytes(b"weights")

    for _ in range(3):
        publish(tmp_path / "releases", ReleaseFacts("f", "f", 0, "toy"), write)
    return tmp_path / "releases"


def serve(root: Path, active: int, *opened: int) -> None:
    write_serving_state(root, ServingState(active, opened))


def opened_inline(root: Path, **options) -> OpenReleases:
    return OpenReleases(root, NumberStage, executor=InlineExecutor(), **options)


def test_opens_what_is_listed_and_nothing_else(root):
    serve(root, 1, 1, 2)
    releases = opened_inline(root)
    releases.wait()
    assert releases.get(1).number == 1
    assert releases.get(2).number == 2
    with pytest.raises(ReleaseNotOpen, match=r"release 3 is not open; open: \[1, 2\]"):
        releases.get(3)


def test_follows_serving_json_and_never_holds_more_than_it_lists(root):
    alive = []

    class Counted(NumberStage):
        def __init__(self, release):
            super().__init__(release)
            alive.append(self.number)

        def __del__(self):
            alive.remove(self.number)

    serve(root, 1, 1, 2)
    releases = OpenReleases(root, Counted, executor=InlineExecutor())
    releases.wait()
    assert sorted(alive) == [1, 2]
    serve(root, 3, 2, 3)
    assert releases.get(3).number == 3
    assert sorted(alive) == [2, 3]
    with pytest.raises(ReleaseNotOpen):
        releases.get(1)


def test_an_open_release_is_served_while_another_opens(root):
    held = HeldExecutor()
    releases = OpenReleases(root, NumberStage, executor=held)
    serve(root, 1, 1)
    with pytest.raises(ReleaseNotOpen):
        releases.get(1)
    held.release()
    assert releases.get(1).number == 1
    serve(root, 2, 1, 2)
    with pytest.raises(ReleaseNotOpen, match=r"open: \[1\]"):
        releases.get(2)
    assert releases.get(1).number == 1
    assert len(held.held) == 1, "asking again does not open it again"
    held.release()
    assert releases.get(2).number == 2


def test_processes_take_turns_to_open_a_release_beside_one_that_serves(root, monkeypatch):
    pauses = []
    monkeypatch.setattr("pinrec_core.serving.open_releases.time.sleep", pauses.append)
    releases = [OpenReleases(root, NumberStage, executor=InlineExecutor(), turn=turn) for turn in (0, 2)]
    serve(root, 1, 1)
    assert [one.get(1).number for one in releases] == [1, 1]
    assert pauses == [0, 0], "nobody is served yet: at once"
    serve(root, 1, 1, 2)
    assert [one.get(2).number for one in releases] == [2, 2]
    assert pauses[2:] == [0, 2 * TURN_S]


def test_a_release_dropped_while_it_opened_is_not_kept(root):
    held = HeldExecutor()
    releases = OpenReleases(root, NumberStage, executor=held)
    serve(root, 2, 2)
    with pytest.raises(ReleaseNotOpen):
        releases.get(2)
    serve(root, 1, 1)
    with pytest.raises(ReleaseNotOpen):
        releases.get(2)
    held.release()
    assert releases.get(1).number == 1
    with pytest.raises(ReleaseNotOpen):
        releases.get(2)


def test_a_corrupted_release_says_why_and_the_others_stay(root, caplog):
    serve(root, 1, 1, 2)
    (root / "2" / "decoder.safetensors").write_bytes(b"WEIGHTS")
    releases = opened_inline(root)
    releases.wait()
    assert releases.get(1).number == 1
    with pytest.raises(InvalidRelease, match=r"release 2: file decoder\.safetensors does not match its sha256"):
        releases.get(2)
    assert "release 2 cannot be opened" in caplog.text


def test_a_failure_is_tried_again_when_serving_json_is_written_again(root):
    serve(root, 1, 1, 2)
    (root / "2" / "decoder.safetensors").write_bytes(b"WEIGHTS")
    releases = opened_inline(root)
    releases.wait()
    (root / "2" / "decoder.safetensors").write_bytes(b"weights")
    with pytest.raises(InvalidRelease):
        releases.get(2)
    serve(root, 2, 1, 2)
    assert releases.get(2).number == 2


def test_a_stage_that_reads_no_file_need_not_verify(root):
    serve(root, 2, 2)
    (root / "2" / "decoder.safetensors").write_bytes(b"WEIGHTS")
    assert opened_inline(root, parts=()).get(2).number == 2
    with pytest.raises(InvalidRelease, match="does not match"):
        opened_inline(root, parts=("decoder.safetensors",)).get(2)


def test_an_unexpected_failure_hides_its_text(root, caplog):
    def explode(release):
        raise OSError("/srv/secret/path")

    serve(root, 1, 1)
    releases = OpenReleases(root, explode, executor=InlineExecutor())
    with pytest.raises(InvalidRelease) as caught:
        releases.wait()
    assert "/srv" not in str(caught.value)
    assert "/srv/secret/path" in caplog.text


def test_waiting_without_serving_json_raises(root):
    with pytest.raises(InvalidRelease, match="lists no release"):
        opened_inline(root).wait()


def test_a_broken_serving_json_changes_nothing(root):
    serve(root, 1, 1)
    releases = opened_inline(root)
    releases.wait()
    (root / "serving.json").write_text("{")
    assert releases.get(1).number == 1
    (root / "serving.json").unlink()
    assert releases.get(1).number == 1


def test_opens_on_a_thread_by_default(root):
    serve(root, 1, 1, 2)
    releases = OpenReleases(root, NumberStage)
    releases.wait()
    assert (releases.get(1).number, releases.get(2).number) == (1, 2)
