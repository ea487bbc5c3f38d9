"""`pinrec up`: the whole stack on this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from pinrec_core.errors import InvalidConfig
from pinrec_core.release import list_releases, open_release, serving_state
from pinrec_core.serving.reconnect import QUICK_POLLING
from services.cli.supervisor import Process, Supervisor
from services.common.client import TOKEN_FILE
from services.common.probe import answers, serves
from services.common.tls import CLIENT_CA, CLIENT_CERT, CLIENT_KEY
from services.triton.tools import locate

_MOST = 65_535
_PORT = click.IntRange(1, _MOST)


@dataclass(frozen=True)
class Stack:
    """Folders and ports of the four processes. Without `items_data` the item log lies beside `signals_data`."""

    releases: Path
    signals_data: Path
    batch_view: Path | None
    items_data: Path | None = None
    backups: Path | None = None
    host: str = "127.0.0.1"
    gateway_port: int = 8500
    gateway_metrics_port: int = 9500
    signals_port: int = 8600
    signals_metrics_port: int = 9600
    items_port: int = 8700
    items_metrics_port: int = 9700
    triton_grpc_port: int = 8001
    triton_http_port: int = 8000
    triton_metrics_port: int = 8002
    triton_health_port: int = 8003
    embed_items: str = ""
    retrieve: str = ""
    gateway_processes: int = 1

    def ports(self) -> dict[str, int]:
        """Every port that an option sets, by its name."""
        return {name: value for name, value in vars(self).items() if name.endswith("_port")}

    def all_ports(self) -> list[tuple[str, int]]:
        """Every port that is listened on, with the option that it comes from."""
        first = self.gateway_metrics_port
        others = range(first + 1, first + self.gateway_processes)
        named = [("--" + name.replace("_", "-"), value) for name, value in self.ports().items()]
        return named + [("--gateway-metrics-port (with --gateway-processes)", port) for port in others]


@click.command()
@click.option(
    "--releases",
    default="work/releases",
    show_default=True,
    envvar="PINREC_RELEASES",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with serving.json and the numbered releases (`pinrec export`, `pinrec release activate`).",
)
@click.option(
    "--signals-data",
    default="work/signals",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder where appended events are kept, made if missing.",
)
@click.option(
    "--batch-view",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Compiled histories of the event log; without one, only appended events make a history.",
)
@click.option(
    "--items-data",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder where added and deleted items are kept, made if missing.  [default: items, beside --signals-data]",
)
@click.option(
    "--backups",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the copies that `pinrec signals backup` asks for.  [default: backups, beside --signals-data]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that everything listens on.")
@click.option("--gateway-port", default=8500, show_default=True, type=_PORT, help="Where a ranking service calls.")
@click.option("--gateway-metrics-port", default=9500, show_default=True, type=_PORT)
@click.option("--signals-port", default=8600, show_default=True, type=_PORT, help="Where events are appended.")
@click.option("--signals-metrics-port", default=9600, show_default=True, type=_PORT)
@click.option("--items-port", default=8700, show_default=True, type=_PORT, help="Where items are added and deleted.")
@click.option("--items-metrics-port", default=9700, show_default=True, type=_PORT)
@click.option("--triton-grpc-port", default=8001, show_default=True, type=_PORT)
@click.option("--triton-http-port", default=8000, show_default=True, type=_PORT)
@click.option("--triton-metrics-port", default=8002, show_default=True, type=_PORT)
@click.option("--triton-health-port", default=8003, show_default=True, type=_PORT, help="HTTP: /livez and /readyz.")
@click.option(
    "--embed-items",
    default="",
    envvar="PINREC_EMBED_ITEMS",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Triton of a memory host that holds the ID embedding; empty = in this stack's own.",
)
@click.option(
    "--retrieve",
    default="",
    envvar="PINREC_RETRIEVE",
    show_envvar=True,
    metavar="HOST:PORT",
    help="Triton of a memory host that holds the index; empty = in this stack's own.",
)
@click.option(
    "--gateway-processes",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Gateway processes that share its port, one a core; each has a metrics port, one number after the other.",
)
def up(**options: object) -> None:
    """Start signals, items, Triton and gateway on this machine, and stop them on Ctrl-C.

    They start in this order, each when the one before is ready, and stop in the other: the gateway first answers what
    it has accepted. Their logs are printed with the process's name. If one dies, the others are stopped and its last
    lines are told again. Triton is the one at PINREC_TRITON, else on PATH, else the one that
    `python -m services.triton install` fetches; PINREC_THREADS is how many threads each of its stages uses.
    """
    stack = Stack(**options)  # type: ignore[arg-type]
    check(stack)
    supervisor = Supervisor(processes(stack), echo=click.echo)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.request_stop())
    with supervisor:
        if supervisor.complete:
            click.echo(calls(stack))
        supervisor.wait()
    click.echo("all stopped")


def check(stack: Stack) -> None:
    """Raise InvalidRelease or InvalidConfig for what would only fail later, and less clearly."""
    if not (stack.releases / "serving.json").is_file():
        numbers = list_releases(stack.releases)
        hint = f"`pinrec release activate {numbers[-1]} --offline`" if numbers else "`pinrec export`"
        raise InvalidConfig(f"--releases has value {str(stack.releases)!r}, where no release is active: {hint} first")
    serving_state(stack.releases)
    if not is_free(stack.host, 0):
        raise InvalidConfig(f"--host has value {stack.host!r}; allowed: an IPv4 address or name of this machine")
    options: dict[int, str] = {}
    for option, port in stack.all_ports():
        if port in options:
            raise InvalidConfig(f"{option} has value {port}, which is also {options[port]}; choose a port for each")
        options[port] = option
        if port > _MOST:
            raise InvalidConfig(f"{option} has value {port}; allowed: {_MOST} at most")
        if not is_free(stack.host, port):
            raise InvalidConfig(f"{option} has value {port}, which another process listens on; choose a free port")


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on a port of an address that this machine has; port 0 = whether it has the address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT can be listened on
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def processes(stack: Stack) -> list[Process]:
    """The four processes, in the order of their start. Raises TritonMissing."""
    return [_signals(stack), _items(stack), _triton(stack), _gateway(stack)]


def _signals(stack: Stack) -> Process:
    address = f"{stack.host}:{stack.signals_port}"
    line = [
        *(sys.executable, "-m", "services.signals.server"),
        *("--releases", str(stack.releases)),
        *("--data", str(stack.signals_data)),
        *("--listen", address),
        "--reflection",
        *("--metrics-port", str(stack.signals_metrics_port)),
        *("--items", f"{stack.host}:{stack.items_port}"),
        *("--backups", str(stack.backups or stack.signals_data.with_name("backups"))),
    ]
    if stack.batch_view is not None:
        line += ["--batch-view", str(stack.batch_view)]
    return Process("signals", line, lambda: serves(address), _environment())


def _items(stack: Stack) -> Process:
    address = f"{stack.host}:{stack.items_port}"
    line = [
        *(sys.executable, "-m", "services.items.server"),
        *("--releases", str(stack.releases)),
        *("--data", str(stack.items_data or stack.signals_data.with_name("items"))),
        *("--listen", address),
        "--reflection",
        *("--metrics-port", str(stack.items_metrics_port)),
    ]
    return Process("items", line, lambda: serves(address), _environment())


def _triton(stack: Stack) -> Process:
    locate()
    line = [
        *(sys.executable, "-m", "services.triton", "serve"),
        *("--releases", str(stack.releases)),
        *("--signals", f"{stack.host}:{stack.signals_port}"),
        *("--items", f"{stack.host}:{stack.items_port}"),
        *("--embed-items", stack.embed_items),
        *("--retrieve", stack.retrieve),
        *("--host", stack.host),
        *("--grpc-port", str(stack.triton_grpc_port)),
        *("--http-port", str(stack.triton_http_port)),
        *("--metrics-port", str(stack.triton_metrics_port)),
        *("--health-port", str(stack.triton_health_port)),
    ]
    url = f"http://{stack.host}:{stack.triton_health_port}/readyz"
    return Process("triton", line, lambda: answers(url), _environment())


def _gateway(stack: Stack) -> Process:
    address = f"{stack.host}:{stack.gateway_port}"
    line = [
        *(sys.executable, "-m", "services.gateway.server"),
        *("--releases", str(stack.releases)),
        *("--triton", f"{stack.host}:{stack.triton_grpc_port}"),
        *("--listen", address),
        "--reflection",
        *("--metrics-port", str(stack.gateway_metrics_port)),
        *(("--processes", str(stack.gateway_processes)) if stack.gateway_processes > 1 else ()),
    ]
    return Process("gateway", line, lambda: serves(address), _environment())


def _environment() -> dict[str, str]:
    return {**QUICK_POLLING, **os.environ, "PYTHONUNBUFFERED": "1"}


def calls(stack: Stack, environ: Mapping[str, str] = os.environ) -> str:
    """Ready-to-paste calls with the words of the active release and the credentials of the environment."""
    gateway = f"{stack.host}:{stack.gateway_port}"
    release = open_release(stack.releases, serving_state(stack.releases).active, verify=False)
    outcomes, surface = release.vocabulary.outcomes, release.vocabulary.surfaces[0]
    budget = ",".join(f"{name}=1" for name in outcomes)
    message = json.dumps({"userId": "1", "surface": surface, "budget": dict.fromkeys(outcomes, 1), "numCandidates": 10})
    method = "pinrec.v1.CandidateService/GetCandidates"
    return (
        f"\nThe stack is up (Ctrl-C stops it): gateway {gateway}, signals {stack.host}:{stack.signals_port}, "
        f"items {stack.host}:{stack.items_port}\n"
        f"  pinrec recommend --address {gateway} --user 1 --surface {surface} --budget {budget}\n"
        f"  grpcurl {_grpcurl_credentials(environ)} -d {shlex.quote(message)} {gateway} {method}\n"
    )


def _grpcurl_credentials(environ: Mapping[str, str]) -> str:
    """What grpcurl must be told where the stack speaks TLS and asks for a token: as `services/common/client.py`."""
    if not environ.get("PINREC_TLS_CERT"):
        return "-plaintext"
    files = {"-cacert": CLIENT_CA, "-cert": CLIENT_CERT, "-key": CLIENT_KEY}
    flags = [f"{flag} {shlex.quote(environ[name])}" for flag, name in files.items() if environ.get(name)]
    if token_file := environ.get(TOKEN_FILE):
        flags.append(f'-H "authorization: Bearer $(cat {shlex.quote(token_file)})"')
    return " ".join(flags)
