"""`pinrec train` and `pinrec evaluate` on a folder, as a user calls them."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pinrec_core.config import config_from_dict, load_config
from pinrec_core.errors import InvalidConfig
from services.cli.main import main
from services.cli.train import parse_overrides, table

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ("--set", "train.max_steps=4", "--set", "train.eval_every=2", "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty users, twenty items, two outcomes, written by hand."""
    folder = tmp_path_factory.mktemp("by-hand")
    rows = [(u, (u * 3 + i) % 20, "save" if (u + i) % 3 else "click", i) for u in range(40) for i in range(6)]
    users, items, actions, order = zip(*rows, strict=True)
    events = {
        "user_id": pa.array(users, pa.int64()),
        "item_id": pa.array(items, pa.int64()),
        "item_type": ["pin"] * len(rows),
        "action": list(actions),
        "surface": ["home"] * len(rows),
        "timestamp_ms": pa.array([1_700_000_000_000 + 60_000 * i for i in order], pa.int64()),
    }
    catalog = {
        "item_id": pa.array(range(20), pa.int64()),
        "item_type": ["pin"] * 20,
        "text": [f"{colour} {thing}" for colour in ("red", "blue", "green", "grey") for thing in "abcde"],
    }
    pq.write_table(pa.table(events), folder / "events.parquet")
    pq.write_table(pa.table(catalog), folder / "items.parquet")
    return folder


def pinrec(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    result = pinrec("train", "--data", folder, "--config", CONFIGS / "tiny.toml", "--run", run, *QUICK)
    assert result.exit_code == 0, result.output
    assert "40 users, 240 events" in result.output
    assert "stopped by max_steps at step 4" in result.output
    return run


def test_evaluate_prints_a_table_beside_popularity_and_keeps_the_metrics(folder, run):
    result = pinrec("evaluate", "--run", run, "--data", folder, "--targets", 2, "--quiet")
    assert result.exit_code == 0, result.output
    for name in (
        "popularity@10",
        "popularity@20",
        "unordered_recall",
        "target_recall/save",
        "unordered_recall/home",
        "served_target_recall",
    ):
        assert name in result.output
    kept = json.loads((run / "metrics.json").read_text())["test"]
    assert (kept["k"], kept["num_targets"]) == (10, 2)


def test_a_report_stands_runs_beside_each_other(folder, run, tmp_path):
    uc = tmp_path / "uc"
    options = ("--set", "model.variant=uc", "--set", "generate.offsets_per_step=1")
    trained = pinrec("train", "--data", folder, "--config", CONFIGS / "tiny.toml", "--run", uc, *QUICK, *options)
    assert trained.exit_code == 0, trained.output
    common = ("--run", run, "--data", folder, "--targets", 2, "--k", 3, "--quiet")
    result = pinrec("evaluate", *common, "--beside", uc, "--report", tmp_path / "page")
    assert result.exit_code == 0, result.output
    assert "report written to" in result.output
    page = (tmp_path / "page" / "report.md").read_text()
    document = json.loads((tmp_path / "page" / "report.json").read_text())
    models = [row["model"] for row in document["sections"][0]["tables"][0]["rows"]]
    assert models == ["mt_oc (run)", "uc (uc)", "mt_oc (run), budget of the past", "popularity@3", "popularity@6"]
    assert [s["title"].split(" (")[0] for s in document["sections"]] == [
        "Models beside each other", "Whom and what they find", "Conditioning on another outcome", "Embeddings a step",
    ]  # fmt: skip
    assert "The same, against uc (uc)" in page
    kept = json.loads((run / "metrics.json").read_text())["test"]
    first = document["sections"][0]["tables"][0]["rows"][0]
    assert first[f"all ({kept['users']:.0f})"]["mean"] == pytest.approx(kept["unordered_recall"])
    result = pinrec("evaluate", *common, "--conditioning", "past", "--json")
    assert json.loads(result.output)["conditioning"] == "past"


def test_what_a_report_cannot_show_is_refused(folder, run, tmp_path):
    common = ("evaluate", "--run", run, "--data", folder, "--targets", 2, "--quiet")
    result = pinrec(*common, "--beside", run)
    assert "--beside is given without --report" in result.output
    result = pinrec(*common, "--beside", run, "--report", tmp_path / "twice")
    assert "allowed: runs whose folders have names of their own" in result.output
    assert not (tmp_path / "twice").exists()
    result = pinrec(*common, "--conditioning", "buy")
    assert "conditioning has value 'buy'; allowed: one of ['true', 'past'" in result.output
    other = tmp_path / "other"
    split = ("--set", "data.split_seed=5")
    trained = pinrec("train", "--data", folder, "--config", CONFIGS / "tiny.toml", "--run", other, *QUICK, *split)
    assert trained.exit_code == 0, trained.output
    result = pinrec(*common, "--beside", other, "--report", tmp_path / "page")
    assert result.exit_code == 1
    assert "was trained on other users or other outcomes than" in result.output


def test_a_run_or_a_data_folder_is_not_trained_over(folder, run, tmp_path):
    """Weights of the old run beside the configuration of the new one would be exported as if they belonged together."""
    before = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    for place, held in ((run, "last.safetensors"), (folder, "events.parquet")):
        result = pinrec("train", "--data", folder, "--config", CONFIGS / "tiny.toml", "--run", place, *QUICK)
        assert result.exit_code == 1
        assert f"which holds {held!r}; allowed: a new folder, or --resume" in result.output
    assert {path.name: path.stat().st_mtime_ns for path in run.iterdir()} == before
    (tmp_path / "config.json").touch()  # interrupted before its first checkpoint
    assert (
        pinrec("train", "--data", folder, "--config", CONFIGS / "tiny.toml", "--run", tmp_path, *QUICK).exit_code == 0
    )


def test_evaluate_prints_json(folder, run):
    result = pinrec("evaluate", "--run", run, "--data", folder, "--k", 3, "--json", "--quiet")
    values = json.loads(result.output)
    assert (values["k"], values["num_targets"], values["drop_seen"]) == (3, 8, True)
    assert set(values) >= {"model", "popularity@3", "popularity@24"}
    assert 0 <= values["model"]["target_recall"] <= values["model"]["unordered_recall"] <= 1


def test_resume_takes_the_configuration_of_the_run(folder, run):
    result = pinrec("train", "--data", folder, "--run", run, "--resume", "--set", "train.max_steps=6", "--quiet")
    assert result.exit_code == 0, result.output
    assert "at step 6" in result.output


def test_the_progress_bar_shows_loss_and_examples(folder, tmp_path):
    config = CONFIGS / "tiny.toml"
    result = pinrec("train", "--data", folder, "--config", config, "--run", tmp_path, "--set", "train.max_steps=12")
    assert result.exit_code == 0, result.output
    assert "loss=" in result.stderr
    assert "examples/s" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--config is missing"),
        (("--config", CONFIGS / "tiny.toml", "--set", "train.max_step=5"), "unknown key 'train.max_step'; known"),
        (("--config", CONFIGS / "tiny.toml", "--set", "max_steps=5"), "allowed: SECTION.KEY=VALUE"),
        (("--config", "nowhere.toml"), "config file 'nowhere.toml' does not exist"),
        (("--resume", "--config", CONFIGS / "tiny.toml"), "--config is given with --resume"),
        (("--resume",), "is not a training run: config.json is missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(folder, tmp_path, arguments, message):
    result = pinrec("train", "--data", folder, "--run", tmp_path / "new", *arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_newer_log_is_read_in_the_codes_of_the_run(folder, run, tmp_path):
    """A surface that the run does not know is the unknown one; the run's vocabulary stays what it was."""
    (tmp_path / "items.parquet").write_bytes((folder / "items.parquet").read_bytes())
    events = pq.read_table(folder / "events.parquet")
    surfaces = pa.array(["elsewhere"] * len(events))
    pq.write_table(events.set_column(4, "surface", surfaces), tmp_path / "events.parquet")
    result = pinrec("evaluate", "--run", run, "--data", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert "unordered_recall" in result.output
    assert "unordered_recall/elsewhere" not in result.output


def test_overrides_are_toml_values():
    found = parse_overrides(("train.max_steps=5", "model.variant=uc", "train.log_q=false", 'data.outcomes=["a", "b"]'))
    assert found == {"train.max_steps": 5, "model.variant": "uc", "train.log_q": False, "data.outcomes": ["a", "b"]}
    with pytest.raises(InvalidConfig, match=r"--set has value 'train\.=1'"):
        parse_overrides(("train.=1",))


def test_a_table_has_one_column_a_model():
    lines = table({"a": {"users": 1200.0, "target_recall": 0.25}, "b": {"users": 1200.0}}).splitlines()
    assert lines[1].split() == ["users", "1,200", "1,200"]
    assert lines[2].split() == ["target_recall", "0.2500", "-"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_configuration_loads_and_survives_its_round_trip(path):
    config = load_config(path)
    assert config_from_dict(config.to_dict()) == config


def test_the_base_configuration_is_the_papers_size():
    model = load_config(CONFIGS / "base.toml").model
    assert (model.variant, model.num_layers, model.hidden_dim) == ("mt_oc", 12, 768)


def test_another_data_set_is_noted(folder, run, tmp_path, caplog):
    for name in ("events.parquet", "items.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert pinrec("evaluate", "--run", run, "--data", folder, "--quiet").exit_code == 0
    assert caplog.messages == []
    assert pinrec("evaluate", "--run", run, "--data", tmp_path, "--quiet").exit_code == 0
    assert caplog.messages == [f"run was trained on {folder.name}; this is {tmp_path.name}"]


def test_evaluate_without_test_users_says_so(folder, tmp_path):
    run = tmp_path / "run"
    config = ("--config", CONFIGS / "tiny.toml", "--set", "data.test_share=0.0", *QUICK)
    assert pinrec("train", "--data", folder, "--run", run, *config).exit_code == 0
    result = pinrec("evaluate", "--run", run, "--data", folder)
    assert result.exit_code == 1
    assert "data.test_share has value 0.0, which leaves no test user" in result.output
