"""`pinrec release`: listing, verification, activation."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinrec_core.config import Config
from pinrec_core.release import (
    ReleaseFacts,
    ServingState,
    activation_lock,
    list_releases,
    publish,
    serving_state,
)
from pinrec_core.release.files import lock
from pinrec_core.schema import Vocabulary
from services.cli.main import main


@pytest.fixture
def root(tmp_path):
    """Two published releases, none active."""

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        (folder / "vocabulary.json").write_text(json.dumps(Vocabulary(("save",), ("save",), ("home",)).to_dict()))
        (folder / "weights").write_bytes(b"12345678")

    facts = ReleaseFacts("e" * 64, "e" * 64, watermark_ms=1_700_000_000_000, dataset="ml-100k")
    for _ in range(2):
        publish(tmp_path, facts, write)
    return tmp_path


def run(*arguments, root):
    return CliRunner().invoke(main, ["release", *arguments, "--releases", str(root)])


def activate(number, root):
    return run("activate", str(number), "--offline", root=root)


def test_offline_activation_keeps_the_release_before_open(root):
    assert activate(1, root).output == "release 1 is active; open: 1\n"
    assert activate(2, root).output == "release 2 is active; open: 1, 2\n"
    assert serving_state(root) == ServingState(active=2, open=(1, 2), previous=1)
    assert activate(1, root).output == "release 1 is active; open: 2, 1\n"


def test_activating_the_active_release_closes_the_other(root):
    activate(1, root)
    activate(2, root)
    assert activate(2, root).output == "release 2 is active; open: 2\n"


def test_rollback_goes_to_the_release_before_and_back(root):
    activate(1, root)
    assert run("rollback", "--offline", root=root).stderr == "Error: no release was active before release 1\n"
    activate(2, root)
    first = "back to release 1; if this is interrupted: pinrec release activate 1\n"
    assert run("rollback", "--offline", root=root).output == first
    assert serving_state(root) == ServingState(active=1, open=(2, 1), previous=2)
    run("rollback", "--offline", root=root)
    assert serving_state(root).active == 2


def test_the_first_release_has_no_gateway_to_ask(root):
    result = run("activate", "1", root=root)
    assert (result.exit_code, "--offline" in result.stderr) == (1, True)
    assert not (root / "serving.json").exists()


def test_a_gateway_that_is_not_there_changes_nothing(root):
    activate(1, root)
    before = (root / "serving.json").read_bytes()
    result = run("activate", "2", "--gateway", "localhost:1", root=root)
    assert (result.exit_code, result.stderr.startswith("Error: localhost:1 is unavailable")) == (1, True)
    assert (root / "serving.json").read_bytes() == before


def test_publish_takes_over_a_finished_folder(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "releases"
    assert run("publish", str(root / "2"), root=elsewhere).output == f"release 1 published under {elsewhere}\n"
    assert run("verify", "1", root=elsewhere).exit_code == 0
    (root / "2" / "weights").write_bytes(b"1234567X")
    refused = run("publish", str(root / "2"), root=elsewhere)
    assert refused.stderr == "Error: release 2: file weights does not match its sha256\n"
    assert list_releases(elsewhere) == [1]


def test_gc_keeps_the_newest_and_whatever_is_served(root):
    for _ in range(3):
        run("publish", str(root / "2"), root=root)
    activate(1, root)
    activate(3, root)
    (root / ".staging-killed").mkdir()
    (root / ".serving.json.77").write_text('{"act')
    assert run("gc", "--keep", "1", root=root).output == "releases removed: 2, 4; leftovers removed: 2\n"
    assert list_releases(root) == [1, 3, 5]
    assert sorted(path.name for path in root.glob(".*") if path.suffix != ".lock") == []


def test_gc_removes_nothing_while_nobody_can_say_what_is_served(root):
    assert run("gc", "--keep", "1", root=root).stderr == "Error: serving state: serving.json is missing\n"
    assert (root / "1").exists()


def test_gc_leaves_a_release_that_is_being_written(root):
    activate(1, root)
    (root / ".staging-written").mkdir()
    with lock(root / ".publishing.lock", shared=True):
        assert "removed: 0" in run("gc", root=root).output
    assert (root / ".staging-written").exists()


def test_two_at_once_are_refused(root):
    with activation_lock(root):
        for verb in (("activate", "1", "--offline"), ("gc",)):
            assert "another activation" in run(*verb, root=root).stderr
    assert not (root / "serving.json").exists()


def test_list_shows_state_data_and_size(root):
    activate(1, root)
    activate(2, root)
    head, first, second = run("list", root=root).output.splitlines()
    assert head.split() == ["release", "state", "variant", "data", "set", "newest", "event", "MB"]
    assert first.split()[:6] == ["1", "open", "mt_oc", "ml-100k", "2023-11-14", "22:13"]
    assert second.split()[:2] == ["2", "active"]
    activate(2, root)
    assert run("list", root=root).output.splitlines()[1].split()[1] == "previous"


def test_a_damaged_release_does_not_end_the_list(root):
    (root / "1" / "manifest.json").write_text("{")
    _, first, second = run("list", root=root).output.splitlines()
    assert first.split() == ["1", "damaged:", "release", "1:", "manifest.json", "is", "not", "readable", "JSON"]
    assert second.split()[:2] == ["2", "mt_oc"]


def test_list_of_an_empty_folder_says_how_to_fill_it(tmp_path):
    result = run("list", root=tmp_path / "none")
    assert (result.exit_code, "pinrec export" in result.output) == (0, True)


def test_verify_says_what_is_wrong_and_activate_refuses_it(root):
    assert run("verify", "1", root=root).output.startswith("release 1 is whole: 3 files")
    (root / "1" / "weights").write_bytes(b"1234567X")
    for verb in (("verify", "1"), ("activate", "1", "--offline")):
        result = run(*verb, root=root)
        assert result.exit_code == 1
        assert result.stderr == "Error: release 1: file weights does not match its sha256\n"
    assert not (root / "serving.json").exists()


def test_a_release_that_is_not_there(root):
    assert activate(7, root).stderr == "Error: release 7 does not exist; there are: 1, 2\n"
