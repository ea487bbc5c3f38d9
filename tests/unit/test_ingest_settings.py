"""Settings of Kafka's client: any from the command line, secrets from a file only."""

import pytest
from click.testing import CliRunner

from services.ingest import consumer, kafka

NEEDED = ["--brokers", "localhost:1", "--topic", "t", "--group", "g", "--signals", "localhost:1", "--metrics-port", "0"]


class Noted:
    """Takes the consumer's place and keeps its options."""

    options = None

    def __init__(self, options, metrics):
        Noted.options = options

    def run(self):
        """Nothing to consume."""

    def stop(self):
        """Nothing runs."""


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setattr(consumer, "EventConsumer", Noted)
    monkeypatch.setattr(kafka.signal, "signal", lambda *_: None)
    return lambda *arguments: CliRunner().invoke(kafka.main, [*NEEDED, *arguments])


def test_settings_come_from_the_file_and_from_the_command_line_which_wins(run, tmp_path):
    file = tmp_path / "kafka.properties"
    file.write_text("# of the cluster\n\nsasl.password = a=b \nsecurity.protocol=SASL_SSL\nclient.id=file\n")
    done = run("--settings", str(file), "--set", "client.id=line")
    assert done.exit_code == 0, done.output
    assert Noted.options.settings == {"sasl.password": "a=b", "security.protocol": "SASL_SSL", "client.id": "line"}


@pytest.mark.parametrize("key", ["sasl.password", "ssl.key.password", "ssl.key.pem", "sasl.oauthbearer.client.secret"])
def test_a_secret_on_the_command_line_is_refused_without_being_repeated(run, key):
    refused = run("--set", f"{key}=hush")
    assert refused.exit_code == 2
    assert f"{key} is a secret; allowed: in the file of --settings" in refused.output
    assert "hush" not in refused.output


def test_a_line_that_is_no_setting_is_refused_by_its_place(run, tmp_path):
    file = tmp_path / "kafka.properties"
    file.write_text("client.id=a\nhush\n")
    refused = run("--settings", str(file))
    assert "the setting in place 2 is not KEY=VALUE" in refused.output
    assert "hush" not in refused.output
