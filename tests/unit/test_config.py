"""Configuration from TOML: what is accepted, and the words of each refusal."""

import pytest

from pinrec_core.config import Config, config_from_dict, load_config
from pinrec_core.errors import InvalidConfig


def test_round_trip_through_plain_values():
    config = Config()
    assert config_from_dict(config.to_dict()) == config


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('[model]\nvariant = "oc"\n[generate]\noffsets_per_step = 1\n[data]\noutcomes = ["save"]\n')
    config = load_config(path, {"train.max_steps": 5, "train.learning_rate": 1})
    assert config.model.variant == "oc"
    assert config.data.outcomes == ("save",)
    assert config.train.max_steps == 5
    assert config.train.learning_rate == 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": {}}, ["'modle'", "'model'"]),
        ({"model": {"layers": 3}}, ["'model.layers'", "num_layers"]),
        ({"model": {"num_layers": "three"}}, ["model.num_layers", "'three'", "int"]),
        ({"model": {"variant": "mt"}}, ["model.variant", "'mt'", "mt_oc"]),
        ({"model": {"hidden_dim": 10}}, ["model.hidden_dim", "10", "num_heads"]),
        ({"model": {"variant": "oc"}}, ["generate.offsets_per_step", "1 for variant oc"]),
        ({"data": {"outcomes": "save"}}, ["data.outcomes", "'save'", "list of strings"]),
        ({"train": 3}, ["train", "table"]),
        ({"targets": {"next_share": 0.0}}, ["targets.next_share", "0.0"]),
        ({"model": {"num_heads": 0}}, ["model.num_heads", "0", "at least 1"]),
        ({"train": {"batch_size": 0}}, ["train.batch_size", "0", "at least 1"]),
        ({"train": {"eval_every": 0}}, ["train.eval_every", "0", "at least 1"]),
        ({"data": {"test_share": -0.5}}, ["data.test_share", "-0.5", "at least 0"]),
        ({"model": {"dropout": 2.0}}, ["model.dropout", "2.0", "below 1"]),
        ({"data": {"outcomes": ["save", "save"]}}, ["data.outcomes", "once"]),
        (
            {"targets": {"max_offset": 4, "window_size": 5, "window_pick": "one_to_one"}},
            ["targets.window_size", "one_to"],
        ),
        ({"targets": {"position_share": 0.0}}, ["targets.position_share", "(0, 1]"]),
        ({"train": {"log_q": 1}}, ["train.log_q", "bool"]),
    ],
)
def test_refusals_name_key_value_and_what_is_allowed(values, words):
    with pytest.raises(InvalidConfig) as refusal:
        config_from_dict(values)
    for word in words:
        assert word in str(refusal.value)


def test_missing_and_garbled_files(tmp_path):
    with pytest.raises(InvalidConfig, match="does not exist"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[model")
    with pytest.raises(InvalidConfig, match="not TOML"):
        load_config(tmp_path / "bad.toml")


def test_positions_leave_room_for_what_is_fed_back():
    """Start token + 100 events + 2 decode steps of a block of 4."""
    assert Config().max_positions == 1 + 100 + 2 * 4
