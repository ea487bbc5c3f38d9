"""Several gateway processes behind one port, real ones, with no stages behind them; and who may have the port."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pinrec_core.errors import InvalidConfig
from services.common.server import LIVE
from services.gateway import processes
from services.gateway.group import Table
from services.gateway.processes import FAILED, Member, reserved
from tests.conftest import descendants, eventually, is_alive
from tests.ports import free_port, free_run


@contextmanager
def listening(port, *options):
    """A socket that listens, with options as a server sets them."""
    with socket.socket() as one:
        for option in options:
            one.setsockopt(socket.SOL_SOCKET, option, 1)
        one.bind(("127.0.0.1", port))
        one.listen()
        yield one.getsockname()[1]


def test_who_shares_a_reserved_port_may_listen_and_nobody_else():
    with reserved("127.0.0.1:0") as address:
        port = int(address.rpartition(":")[2])
        with listening(port, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with listening(port, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                pass
            with pytest.raises(OSError, match="in use"), listening(port, socket.SO_REUSEADDR):
                pass
        with pytest.raises(OSError, match="in use"), listening(port, socket.SO_REUSEADDR):
            pass
        with (
            pytest.raises(InvalidConfig, match=f"value '{address}'; allowed with several processes"),
            reserved(address),
        ):
            pass
    with reserved(address):
        pass


@pytest.mark.parametrize("options", [(socket.SO_REUSEADDR,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)])
def test_a_port_that_somebody_listens_on_is_not_shared(options):
    with listening(0, *options) as port, pytest.raises(InvalidConfig), reserved(f"127.0.0.1:{port}"):
        pass


def test_a_port_is_free_again_while_old_connections_linger():
    """A gateway is started again at once; the kernel keeps closed connections for a minute."""
    with listening(0, socket.SO_REUSEADDR) as port:
        with socket.create_connection(("127.0.0.1", port)) as client:
            pass
        del client
    with reserved(f"127.0.0.1:{port}"), listening(port, socket.SO_REUSEADDR, socket.SO_REUSEPORT) as again:
        assert again == port


@pytest.mark.parametrize("listen", ["unix:/tmp/gateway", "localhost", "nowhere.invalid:1", "192.0.2.1:80"])
def test_an_address_that_cannot_be_shared_is_named(listen):
    with pytest.raises(InvalidConfig, match=re.escape(f"--listen has value {listen!r}; allowed")), reserved(listen):
        pass


# --- a member: a small process in the place of a gateway ---


JOINED = """
import sys, time
from pathlib import Path
from services.gateway.group import Group, Table
group = Group(Table.open(Path(sys.argv[1])), 0)
group.listen()
while True:
    time.sleep(0.01)
    group.beat()
"""


@pytest.fixture
def table(tmp_path):
    return Table.make(tmp_path / "table", 1)


@pytest.fixture
def member(table, tmp_path):
    one = Member(table, 0, [sys.executable, "-c", JOINED, str(tmp_path / "table")])
    assert eventually(lambda: table.is_listening(0) or not one.keep())
    yield one
    one.terminate()
    one.end(time.monotonic() + 60)


def test_a_process_that_died_is_started_again(table, member, monkeypatch):
    monkeypatch.setattr(processes, "RESTART_S", 0.0)
    first = member.pid
    member._process.kill()
    assert eventually(lambda: member.keep() and member.pid != first)
    assert eventually(lambda: member.keep() and table.is_listening(0))


def test_a_process_that_hangs_is_killed(table, member, monkeypatch):
    monkeypatch.setattr(processes, "STUCK_S", 1.0)
    monkeypatch.setattr(processes, "RESTART_S", 0.0)
    first = member.pid
    member._process.send_signal(signal.SIGSTOP)
    assert eventually(lambda: member.keep() and member.pid != first)
    assert not is_alive(first)


def test_one_that_ends_before_it_ever_listened_is_not_started_again(table):
    one = Member(table, 0, [sys.executable, "-c", "raise SystemExit(3)"])
    assert eventually(lambda: not one.keep())


def ignored(pid):
    """Signals that a process ignores."""
    mask = int(re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1], 16)
    return [number for number in signal.valid_signals() if mask >> (number - 1) & 1]


def test_one_that_does_not_end_is_killed_and_told_apart(table):
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    one = Member(table, 0, [sys.executable, "-c", deaf])
    assert eventually(lambda: signal.SIGTERM in ignored(one.pid))
    one.terminate()
    assert one.end(time.monotonic()) == FAILED
    assert not is_alive(one.pid)


# --- the gateway itself ---


@pytest.fixture
def gateway(tmp_path):
    """`python -m services.gateway.server --processes 2` with nothing behind it: its process, port and metrics ports."""
    with ExitStack() as held:

        def start(*more, port, metrics):
            command = [sys.executable, "-m", "services.gateway.server", "--releases", str(tmp_path)]
            command += ["--triton", "localhost:1", "--listen", f"127.0.0.1:{port}", "--metrics-port", str(metrics)]
            log = held.enter_context((tmp_path / f"log-{time.monotonic_ns()}").open("w+"))
            started = held.enter_context(subprocess.Popen([*command, *more], stderr=log))
            held.callback(started.kill)
            return started, log

        yield start


def health(port, name):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        try:
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=1).status
        except grpc.RpcError:
            return None


def metrics_are_served(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=1) as page:
            return b"pinrec_gateway_ready" in page.read()
    except OSError:
        return False


def test_without_stages_one_says_that_it_is_live_and_not_ready_and_all_end_cleanly(gateway):
    port, metrics = free_port(), free_run(2)
    started, log = gateway("--processes", "2", port=port, metrics=metrics)
    assert eventually(lambda: health(port, LIVE) == health_pb2.HealthCheckResponse.SERVING)
    assert health(port, "") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert eventually(lambda: metrics_are_served(metrics) and metrics_are_served(metrics + 1))
    children = descendants(started.pid)
    assert len(children) == 2
    for other in ("1", "2"):  # by mistake, with and without processes of its own
        second, said = gateway("--processes", other, port=port, metrics=0)
        assert second.wait(timeout=60) == 1
        said.seek(0)
        assert f"--listen has value '127.0.0.1:{port}'; allowed" in said.read()
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0
    assert not [pid for pid in children if is_alive(pid)]
    log.seek(0)
    assert "Traceback" not in log.read()


def test_by_default_a_gateway_starts_no_other_process_and_shares_its_port_with_nobody(gateway):
    port = free_port()
    started, _ = gateway(port=port, metrics=0)
    assert eventually(lambda: health(port, LIVE) == health_pb2.HealthCheckResponse.SERVING)
    assert descendants(started.pid) == []
    for other in ("1", "2"):
        second, _ = gateway("--processes", other, port=port, metrics=0)
        assert second.wait(timeout=60) == 1


def test_what_keeps_one_from_starting_ends_all(gateway):
    port, metrics = free_port(), free_run(2)
    with listening(metrics, socket.SO_REUSEADDR):
        started, log = gateway("--processes", "2", port=port, metrics=metrics)
        assert started.wait(timeout=60) == FAILED
    log.seek(0)
    assert f"Error: --metrics-port has value {metrics} on host '127.0.0.1'; allowed: a free port" in log.read()
