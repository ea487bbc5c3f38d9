"""The whole stack behind mutual TLS and tokens, Triton's port included: it works, and nobody else gets in."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from click.testing import CliRunner

from pinrec_core.errors import PinrecError
from services.cli.main import main
from services.cli.up import Stack
from services.common.client import connect, open_channel
from services.common.probe import serves
from services.common.tokens import read_clients, write_clients
from services.proto import items_pb2, signals_pb2
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.items_pb2_grpc import ItemServiceStub
from services.proto.signals_pb2_grpc import SignalServiceStub
from tests.conftest import descendants, eventually, quiet_environment, up_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SCOPES = {"stages": ["read"], "ranking": ["read"], "log": ["append"], "ops": ["read", "admin"]}
NEW = 6_000_000_000
NO_TOKEN = "UNAUTHENTICATED no known token; send one as metadata, authorization: Bearer TOKEN"


@dataclass(frozen=True)
class Guarded:
    """A running stack and the credentials of its clients, each made with `pinrec token`."""

    stack: Stack
    folder: Path
    pid: int
    log: Path

    def address(self, part: str) -> str:
        return f"{self.stack.host}:{vars(self.stack)[part + '_port']}"

    def token(self, client: str) -> Path:
        return self.folder / f"{client}.token"

    @contextmanager
    def as_client(self, client: str | None, certificate: bool = True) -> Iterator[None]:
        """This process has the credentials of `client`; None = no token."""
        files = client_files(self.folder) if certificate else {"PINREC_CLIENT_CA": self.folder / "ca.pem"}
        with pytest.MonkeyPatch.context() as environment:
            for name, path in files.items():
                environment.setenv(name, str(path))
            if client is not None:
                environment.setenv("PINREC_TOKEN_FILE", str(self.token(client)))
            yield

    def ask(self, user_id: int = 1) -> GetCandidatesResponse:
        request = GetCandidatesRequest(user_id=user_id, surface="home", budget={"save": 1}, num_candidates=20)
        with connect(self.address("gateway"), CandidateServiceStub) as stub:
            return stub.GetCandidates(request, timeout=30)

    def pinrec(self, *arguments: str) -> str:
        """Output of a verb, stderr included."""
        return CliRunner().invoke(main, [*arguments]).output


def client_files(folder: Path) -> dict[str, Path]:
    return {
        "PINREC_CLIENT_CA": folder / "ca.pem",
        "PINREC_CLIENT_CERT": folder / "client.pem",
        "PINREC_CLIENT_KEY": folder / "client.key",
    }


def make_credentials(folder: Path) -> dict[str, str]:
    """Certificates and tokens under `folder`, and the environment of a stack that uses all of them."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name in ("server", "client"):
        made = authority.issue_cert("localhost", "127.0.0.1")
        made.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
        made.private_key_pem.write_to_path(folder / f"{name}.key")
    for client, scopes in SCOPES.items():
        line = ["token", "new", client, "--tokens", str(folder / "tokens.toml"), *(f"--scope={one}" for one in scopes)]
        made = CliRunner().invoke(main, line)
        assert made.exit_code == 0, made.output
        (folder / f"{client}.token").write_text(made.stdout)
    files = {
        **client_files(folder),
        "PINREC_TLS_CERT": folder / "server.pem",
        "PINREC_TLS_KEY": folder / "server.key",
        "PINREC_TLS_CLIENT_CA": folder / "ca.pem",
        "PINREC_TOKENS": folder / "tokens.toml",
        "PINREC_TOKEN_FILE": folder / "stages.token",
    }
    return {"PINREC_TRITON_TLS": "1", **{name: str(path) for name, path in files.items()}}


@pytest.fixture(scope="module")
def guarded(world, on_free_ports, tmp_path_factory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    stack = on_free_ports(world.releases, folder / "signals", world.batch_view)
    log = folder / "up.log"
    environment = {**quiet_environment(), **make_credentials(folder)}
    with log.open("w") as file:
        up = subprocess.Popen(up_command(stack), env=environment, stdout=file, stderr=file)
    here = Guarded(stack, folder, up.pid, log)
    try:
        with here.as_client(None):
            assert eventually(lambda: up.poll() is not None or serves(here.address("gateway")))
        assert up.poll() is None, log.read_text()[-5_000:]
        yield here
        up.terminate()
        assert up.wait(timeout=60) == 0, log.read_text()[-5_000:]
        assert "Traceback" not in log.read_text()
    finally:
        up.terminate()
        up.wait()


def test_events_and_items_reach_the_next_answers_through_all_the_locks(guarded):
    """The stages' clients of signals and items, the gateway's of Triton and the keeper's canaries have credentials."""
    now_ms = int(time.time() * 1000)
    event = signals_pb2.Event(
        user_id=-3, item_id=1, item_type="pin", action="save", surface="home", timestamp_ms=now_ms
    )
    with guarded.as_client("log"):
        with connect(guarded.address("signals"), SignalServiceStub) as stub:
            stub.AppendEvents(signals_pb2.AppendEventsRequest(events=[event]), timeout=30)
        with connect(guarded.address("items"), ItemServiceStub) as stub:
            added = items_pb2.AddItemsRequest(items=[items_pb2.Item(item_id=NEW, text="mossy brass lantern")])
            stub.AddItems(added, timeout=30)
    with guarded.as_client("ranking"):
        answer = guarded.ask(-3)
        assert (len(answer.candidates), answer.realtime_events, answer.degraded) == (20, 1, False)
        with connect(guarded.address("items"), ItemServiceStub) as stub:
            state = stub.GetItemStatus(items_pb2.GetItemStatusRequest(), timeout=30)
    assert state.num_added == 1
    metrics = f"http://{guarded.stack.host}:{guarded.stack.items_metrics_port}/metrics"

    def followers() -> bool:
        with urllib.request.urlopen(metrics, timeout=10) as page:
            return "pinrec_items_followers 2.0" in page.read().decode()

    assert eventually(followers), "the retrieve stage and the signal service"


@pytest.mark.parametrize("part", ["gateway", "signals", "items"])
def test_nobody_gets_in_without_certificate_and_token(guarded, part):
    address = guarded.address(part)

    def refused() -> str:
        with open_channel(address) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary("/pinrec.v1.CandidateService/GetCandidates")(b"", timeout=10)
        return f"{error.value.code().name} {error.value.details()}"

    assert refused().startswith("UNAVAILABLE"), "without TLS"
    with guarded.as_client("ranking", certificate=False):
        assert refused().startswith("UNAVAILABLE"), "without a certificate"
    with guarded.as_client(None):
        assert refused() == NO_TOKEN
        assert serves(address), "health is open to whom TLS lets in"


def test_tritons_ports_are_closed_to_whom_has_no_certificate(guarded):
    with grpc.insecure_channel(guarded.address("triton_grpc")) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with socket.socket() as probe:
        assert probe.connect_ex((guarded.stack.host, guarded.stack.triton_http_port)) != 0, "HTTP, which has no TLS"


def test_verbs_use_the_same_credentials_and_go_by_their_scope(guarded):
    gateway, signals = guarded.address("gateway"), guarded.address("signals")
    recommend = ["recommend", "--user", "1", "--surface", "home", "--budget", "save=1", "--address", gateway]
    backup = ["signals", "backup", "monday", "--signals", signals]
    with guarded.as_client("ranking"):
        assert "user 1 on home | release 1 |" in guarded.pinrec(*recommend)
        assert "PERMISSION_DENIED" in guarded.pinrec(*backup)
    with guarded.as_client("log"):
        assert "client log may not call this method: it needs scope read" in guarded.pinrec(*recommend)
    with guarded.as_client("ops"):
        assert "backup monday: " in guarded.pinrec(*backup)
        probe = [sys.executable, "-m", "services.common.probe", gateway, "pinrec.v1.CandidateService"]
        assert subprocess.run(probe, check=False, env=os.environ).returncode == 0
    assert "client ops calls /pinrec.v1.SignalService/Backup" in guarded.log.read_text()
    assert guarded.pinrec(*recommend).startswith("Error: ")


def test_an_ended_token_is_refused_on_a_connection_that_is_open(guarded):
    path = guarded.folder / "tokens.toml"
    kept = read_clients(path)
    made = CliRunner().invoke(main, ["token", "new", "guest", "--scope", "read", "--tokens", str(path)])
    guarded.token("guest").write_text(made.stdout)
    request = GetCandidatesRequest(user_id=1, surface="home", budget={"save": 1}, num_candidates=1)
    with guarded.as_client("guest"), open_channel(guarded.address("gateway")) as channel:
        stub = CandidateServiceStub(channel)

        def code() -> str:
            try:
                stub.GetCandidates(request, timeout=30)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        assert eventually(lambda: code() == "OK")
        write_clients(path, kept)
        assert eventually(lambda: code() == "UNAUTHENTICATED")


def test_no_secret_stands_on_a_command_line_or_in_the_log(guarded):
    secrets = [guarded.token(client).read_text().strip() for client in SCOPES]
    secrets += (guarded.folder / "server.key").read_text().splitlines()[1:-1]
    told = [
        Path(f"/proc/{pid}/{file}").read_text() for pid in descendants(guarded.pid) for file in ("cmdline", "environ")
    ]
    text = "".join([guarded.log.read_text(), *told])
    assert len(told) >= 2 * 9
    assert not [secret for secret in secrets if secret in text]


def test_calls_are_counted_by_client(guarded):
    with guarded.as_client("ranking"):
        guarded.ask()
    with guarded.as_client(None), pytest.raises(PinrecError, match="UNAUTHENTICATED from"):
        guarded.ask()
    with urllib.request.urlopen(f"http://{guarded.stack.host}:{guarded.stack.gateway_metrics_port}/metrics") as page:
        lines = page.read().decode().splitlines()
    counted = {line.partition(" ")[0] for line in lines if line.startswith("pinrec_client_calls_total")}
    assert 'pinrec_client_calls_total{client="ranking",result="admitted"}' in counted
    assert 'pinrec_client_calls_total{client="",result="unauthenticated"}' in counted
