"""`pinrec up` before anything starts: what it refuses, and the four processes it would start."""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pinrec_core.config import Config
from pinrec_core.errors import InvalidConfig
from pinrec_core.release import ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.schema import Vocabulary
from services.cli.up import Stack, calls, check, is_free, processes, up
from tests.ports import free_ports, free_run


@pytest.fixture
def releases(tmp_path) -> Path:
    def write(folder: Path) -> None:
        vocabulary = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"))
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))

    publish(tmp_path / "releases", ReleaseFacts("f", "f", 0, "toy"), write)
    return tmp_path / "releases"


@pytest.fixture
def stack(releases) -> Stack:
    """On free ports, with release 1 active."""
    write_serving_state(releases, ServingState(1, (1,)))
    names = [name for name in vars(Stack(releases, releases, None)) if name.endswith("_port")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    return Stack(releases, releases.parent / "signals", None, **ports)


def test_no_active_release_says_which_to_activate(releases, tmp_path):
    with pytest.raises(InvalidConfig, match=r"no release is active: `pinrec release activate 1 --offline` first"):
        check(Stack(releases, tmp_path, None))
    with pytest.raises(InvalidConfig, match=r"no release is active: `pinrec export` first"):
        check(Stack(tmp_path / "empty", tmp_path, None))


def test_a_taken_port_is_named_by_its_option(stack):
    with socket.socket() as taken:
        taken.bind((stack.host, stack.triton_grpc_port))
        taken.listen()
        assert not is_free(stack.host, stack.triton_grpc_port)
        with pytest.raises(
            InvalidConfig, match=rf"--triton-grpc-port has value {stack.triton_grpc_port}, which another"
        ):
            check(stack)
    check(stack)


def test_ports_and_host_that_cannot_be_listened_on_are_named(stack, releases):
    twice = replace(stack, signals_port=stack.gateway_port)
    with pytest.raises(InvalidConfig, match=rf"--signals-port has value {stack.gateway_port}, which is also --gateway"):
        check(twice)
    with pytest.raises(InvalidConfig, match=r"--host has value '192\.0\.2\.1'; allowed"):
        check(replace(stack, host="192.0.2.1"))
    too_large = CliRunner().invoke(up, ["--releases", str(releases), "--gateway-port", "99999"])
    assert "99999 is not in the range 1<=x<=65535" in too_large.output


def test_the_command_ends_with_the_reason(releases):
    result = CliRunner().invoke(up, ["--releases", str(releases)])
    assert isinstance(result.exception, InvalidConfig)


def test_processes_in_order_with_their_addresses(stack, tmp_path, monkeypatch):
    triton = tmp_path / "bin" / "tritonserver"
    triton.parent.mkdir()
    triton.write_text("#!/bin/sh\n")
    triton.chmod(0o755)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    monkeypatch.setenv("PINREC_TRITON", str(triton))
    signals, items, server, gateway = processes(stack)
    assert [signals.name, items.name, server.name, gateway.name] == ["signals", "items", "triton", "gateway"]
    signals_address = f"127.0.0.1:{stack.signals_port}"
    assert list(signals.command) == [
        *(sys.executable, "-m", "services.signals.server"),
        *("--releases", str(stack.releases), "--data", str(stack.signals_data)),
        *("--listen", signals_address, "--reflection", "--metrics-port", str(stack.signals_metrics_port)),
        *("--items", f"127.0.0.1:{stack.items_port}"),
        *("--backups", str(stack.signals_data.parent / "backups")),
    ]
    assert list(items.command) == [
        *(sys.executable, "-m", "services.items.server"),
        *("--releases", str(stack.releases), "--data", str(stack.signals_data.parent / "items")),
        *("--listen", f"127.0.0.1:{stack.items_port}", "--reflection"),
        *("--metrics-port", str(stack.items_metrics_port)),
    ]
    elsewhere = processes(replace(stack, items_data=tmp_path / "elsewhere"))[1]
    assert str(tmp_path / "elsewhere") in elsewhere.command
    assert list(server.command) == [
        *(sys.executable, "-m", "services.triton", "serve"),
        *("--releases", str(stack.releases), "--signals", signals_address),
        *("--items", f"127.0.0.1:{stack.items_port}"),
        *("--embed-items", "", "--retrieve", ""),
        *("--host", "127.0.0.1", "--grpc-port", str(stack.triton_grpc_port)),
        *("--http-port", str(stack.triton_http_port), "--metrics-port", str(stack.triton_metrics_port)),
        *("--health-port", str(stack.triton_health_port)),
    ]
    split = processes(replace(stack, embed_items="memory:1", retrieve="memory:2"))[2].command
    assert list(split[10:14]) == ["--embed-items", "memory:1", "--retrieve", "memory:2"]
    assert list(gateway.command) == [
        *(sys.executable, "-m", "services.gateway.server"),
        *("--releases", str(stack.releases), "--triton", f"127.0.0.1:{stack.triton_grpc_port}"),
        *("--listen", f"127.0.0.1:{stack.gateway_port}", "--reflection"),
        *("--metrics-port", str(stack.gateway_metrics_port)),
    ]


def test_gateway_processes_have_a_metrics_port_each(stack, monkeypatch):
    monkeypatch.setattr("services.cli.up.locate", lambda: None)
    assert "--processes" not in processes(stack)[-1].command
    several = replace(stack, gateway_metrics_port=free_run(3), gateway_processes=3)
    assert list(processes(several)[-1].command)[-2:] == ["--processes", "3"]
    check(several)
    last = several.gateway_metrics_port + 2
    with socket.socket() as taken:
        taken.bind((stack.host, last))
        taken.listen()
        words = (
            rf"--gateway-metrics-port \(with --gateway-processes\) has value {last}, which another process listens on"
        )
        with pytest.raises(InvalidConfig, match=words):
            check(several)
    with pytest.raises(InvalidConfig, match=f"--items-port has value {last}, which is also|has value {last}, which is"):
        check(replace(several, items_port=last))
    with pytest.raises(InvalidConfig, match="has value 65536; allowed: 65535 at most"):
        check(replace(several, gateway_metrics_port=65_534))


def test_batch_view_is_passed_on(stack, tmp_path, monkeypatch):
    with_view = Stack(**(vars(stack) | {"batch_view": tmp_path}))
    monkeypatch.setattr("services.cli.up._triton", lambda stack: None)
    signals = processes(with_view)[0]
    assert list(signals.command)[-2:] == ["--batch-view", str(tmp_path)]


def test_printed_calls_use_the_releases_words(stack):
    text = calls(stack)
    assert f"pinrec recommend --address 127.0.0.1:{stack.gateway_port} --user 1 --surface home" in text
    assert "--budget save=1,click=1" in text
    assert '"surface": "home"' in text


def test_printed_grpcurl_has_the_credentials_that_the_stack_asks_for(stack):
    assert "  grpcurl -plaintext -d '{" in calls(stack, {})
    tls = {"PINREC_TLS_CERT": "tls.crt", "PINREC_TLS_KEY": "tls.key", "PINREC_CLIENT_CA": "my ca.pem"}
    assert "  grpcurl -cacert 'my ca.pem' -d '{" in calls(stack, tls)
    mutual = tls | {"PINREC_CLIENT_CERT": "c.crt", "PINREC_CLIENT_KEY": "c.key", "PINREC_TOKEN_FILE": "t"}
    flags = "-cacert 'my ca.pem' -cert c.crt -key c.key -H \"authorization: Bearer $(cat t)\""
    assert f"  grpcurl {flags} -d '{{" in calls(stack, mutual)


def test_processes_look_at_new_connections_often_unless_told_otherwise(stack, monkeypatch):
    """gRPC looks every 5 s by default, at each step of a handshake: a stack behind TLS was ready 15 s late."""
    name = "GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS"
    monkeypatch.setattr("services.cli.up.locate", lambda: None)
    assert {process.environment[name] for process in processes(stack)} == {"200"}
    monkeypatch.setenv(name, "1000")
    assert {process.environment[name] for process in processes(stack)} == {"1000"}
