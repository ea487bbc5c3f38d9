"""`pinrec recommend --release-dir`: the gateway's own checks and reply around the path in this process."""

import json

import pytest
import torch
from click.testing import CliRunner

from pinrec_core.config import config_from_dict
from pinrec_core.data.dataset import open_dataset
from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
from pinrec_core.model.pinrec import PinRec
from pinrec_core.train.export import export
from services.cli.main import main

SIZES = {
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "embedding_dim": 8,
    "id_dim": 4,
    "hash_rows": 50,
    "hash_dim": 4,
    "max_history": 8,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with the synthetic log `data` and `releases/1` of an untrained model."""
    root = tmp_path_factory.mktemp("world")
    SyntheticWorld(SyntheticSpec(users=20, items=60, events=400)).write(root / "data")
    config = config_from_dict({"model": SIZES})
    dataset = open_dataset(root / "data", config)
    torch.manual_seed(0)
    model = PinRec(config, dataset.vocabulary, dataset.items.content.shape[1])
    export(model, dataset, root / "releases")
    return root


def run(world, *arguments):
    base = ["recommend", "--surface", "home", "--budget", "save=0.7,click=0.3", "-n", "10"]
    return CliRunner().invoke(main, [*base, "--release-dir", str(world / "releases" / "1"), *arguments])


def test_counts_follow_the_budget_and_the_history_is_the_logs(world):
    result = run(world, "--user", "3", "--data", str(world / "data"), "--json")
    assert result.exit_code == 0, result.output
    reply = json.loads(result.output)
    outcomes = [candidate["outcome"] for candidate in reply["candidates"]]
    assert (outcomes.count("save"), outcomes.count("click")) == (7, 3)
    assert (reply["release"], reply["cold_start"]) == ("1", False)
    assert 0 < reply["history_length"] <= 8


def test_without_data_everybody_is_cold_and_titles_come_from_the_release(world):
    result = run(world, "--user", "3", "--explain")
    lines = result.output.splitlines()
    assert lines[0].endswith("| cold start")
    assert " title " in lines[2]
    assert len(lines) == 3 + 10
    assert "step 0, offset" in result.output


def test_the_gateways_checks_hold_here_too(world):
    result = run(world, "--user", "3", "--query", "cats")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: search_query has value 'cats'; allowed: none on surface 'home'")
