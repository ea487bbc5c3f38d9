"""`pinrec release`: listing, verification, activation."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinrec_core.config import Config
from pinrec_core.release import ReleaseFacts, publish, serving_state
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


def test_activation_keeps_the_release_before_open(root):
    assert run("activate", "1", root=root).output == "release 1 is active; open: 1\n"
    assert run("activate", "2", root=root).output == "release 2 is active; open: 1, 2\n"
    assert (serving_state(root).active, serving_state(root).open) == (2, (1, 2))
    assert run("activate", "1", root=root).output == "release 1 is active; open: 2, 1\n"


def test_activating_the_active_release_closes_the_other(root):
    run("activate", "1", root=root)
    run("activate", "2", root=root)
    assert run("activate", "2", root=root).output == "release 2 is active; open: 2\n"


def test_list_shows_state_data_and_size(root):
    run("activate", "1", root=root)
    run("activate", "2", root=root)
    head, first, second = run("list", root=root).output.splitlines()
    assert head.split() == ["release", "state", "variant", "data", "set", "newest", "event", "MB"]
    assert first.split()[:6] == ["1", "open", "mt_oc", "ml-100k", "2023-11-14", "22:13"]
    assert second.split()[:2] == ["2", "active"]


def test_list_of_an_empty_folder_says_how_to_fill_it(tmp_path):
    result = run("list", root=tmp_path / "none")
    assert (result.exit_code, "pinrec export" in result.output) == (0, True)


def test_verify_says_what_is_wrong_and_activate_refuses_it(root):
    assert run("verify", "1", root=root).output.startswith("release 1 is whole: 3 files")
    (root / "1" / "weights").write_bytes(b"1234567X")
    for verb in ("verify", "activate"):
        result = run(verb, "1", root=root)
        assert result.exit_code == 1
        assert result.stderr == "Error: release 1: file weights does not match its sha256\n"
    assert not (root / "serving.json").exists()


def test_a_release_that_is_not_there(root):
    assert run("activate", "7", root=root).stderr == "Error: release 7: manifest.json is missing\n"
