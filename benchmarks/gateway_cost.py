"""What TLS, tokens and tracing cost the gateway: requests a second with them and without, side by side in one run.

    python -m benchmarks.gateway_cost --work work/gateway-cost --report docs/figures

One gateway a configuration, all on core 0; the caller and the Triton that they share on core 1. That Triton answers
each request after 50 ms with the bytes of a real answer (`canned_triton.py`), so that the gateway is what is measured:
behind a real one on this machine the difference would drown. The configurations take turns, a few seconds each, and are
compared with the plain one of the same round.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import click
import grpc
import grpc.aio
import trustme

from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, fresh, make_world
from pinrec_core.release import Release, ServingState, open_release, write_serving_state
from services.common.limits import Limits
from services.common.probe import serves
from services.common.tokens import Client, digest_of, new_token, write_clients
from services.proto.candidates_pb2 import GetCandidatesRequest

MOST_COST = 0.15
"""Of the plain gateway's requests a second."""

DEPLOYED = "mutual TLS, tokens, 1 % traced"
"""What the bar is for: a gateway that traces all it serves is one that somebody debugs."""

WARM_UP_S = 4.0

METHOD = "/pinrec.v1.CandidateService/GetCandidates"
USER, CANDIDATES = 1, 100
GATEWAY_CORE, CALLER_CORE = 0, 1
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass
class Configuration:
    """A gateway and what was measured of it, one figure a round."""

    name: str
    environment: Mapping[str, str]
    port: int = 0
    pid: int = 0
    per_second: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    failed: int = 0

    def forget(self) -> None:
        """What was measured so far."""
        self.per_second.clear()
        self.cpu_ms.clear()
        self.failed = 0


@dataclass(frozen=True)
class Credentials:
    """Files under `folder` for gateways that ask for a certificate and a token, and for their caller."""

    folder: Path
    token: str

    @classmethod
    def make(cls, folder: Path) -> Credentials:
        """A CA, a certificate for each side, and a token whose limits are kept but never reached."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        for name in ("server", "client"):
            made = authority.issue_cert("localhost", "127.0.0.1")
            made.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
            made.private_key_pem.write_to_path(folder / f"{name}.key")
        token = new_token()
        limits = Limits(requests_per_second=1e6, requests_per_day=10**12)
        write_clients(folder / "tokens.toml", {"ranking": Client("ranking", ("read",), (digest_of(token),), limits)})
        return cls(folder, token)

    def server(self) -> dict[str, str]:
        """Environment of a gateway that hears only clients with a certificate."""
        files = {"PINREC_TLS_CERT": "server.pem", "PINREC_TLS_KEY": "server.key", "PINREC_TLS_CLIENT_CA": "ca.pem"}
        return {name: str(self.folder / file) for name, file in files.items()}

    def client(self) -> dict[str, str]:
        """Environment of a caller with a certificate."""
        files = {"PINREC_CLIENT_CERT": "client.pem", "PINREC_CLIENT_KEY": "client.key", "PINREC_CLIENT_CA": "ca.pem"}
        return {name: str(self.folder / file) for name, file in files.items()}

    def channel(self) -> grpc.ChannelCredentials:
        """The same for a channel; the token goes with each call."""
        files = [(self.folder / file).read_bytes() for file in ("ca.pem", "client.key", "client.pem")]
        return grpc.ssl_channel_credentials(*files)


def configurations(credentials: Credentials, collector: str) -> list[Configuration]:
    """Each adds to the one before; the first is plain, the last traces every request."""
    tls = credentials.server()
    tokens = {**tls, "PINREC_TOKENS": str(credentials.folder / "tokens.toml")}
    traced = {**tokens, "OTEL_EXPORTER_OTLP_ENDPOINT": collector}
    some = {**traced, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}
    return [
        Configuration("plain", {}),
        Configuration("mutual TLS", tls),
        Configuration("mutual TLS, tokens", tokens),
        Configuration(DEPLOYED, some),
        Configuration("mutual TLS, tokens, all traced", traced),
    ]


# --- what runs ---


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This process, and whatever it starts meanwhile, runs on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def collector() -> Iterator[str]:
    """Takes spans and drops them; the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def process(core: int, log: Path, environment: Mapping[str, str], *command: str) -> Iterator[int]:
    """A Python module running on a core until the end of the context; its pid."""
    with on_core(core), log.open("w") as file:
        popen = subprocess.Popen(
            [sys.executable, "-m", *command], env={**os.environ, **environment}, stdout=file, stderr=file
        )
    try:
        yield popen.pid
    finally:
        popen.terminate()
        popen.wait()


def start(one: Configuration, world: World, triton: int, running: ExitStack, credentials: Credentials) -> None:
    """A gateway, once its canary came back. Raises RuntimeError with its log if it does not."""
    log = world.work / f"{one.name.replace(' ', '-').replace(',', '').replace('%', '')}.log"
    line = ["services.gateway.server", "--releases", str(world.releases), "--triton", f"127.0.0.1:{triton}"]
    line += ["--listen", f"127.0.0.1:{one.port}", "--metrics-port", "0", "--canary-seconds", "3600"]
    one.pid = running.enter_context(process(GATEWAY_CORE, log, one.environment, *line))
    with environment_of(credentials.client() if one.environment else {}):
        deadline = time.monotonic() + 60
        while not serves(f"127.0.0.1:{one.port}"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the gateway {one.name} did not start: {log.read_text()[-2_000:]}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """As many that nothing listens on."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def environment_of(values: Mapping[str, str]) -> Iterator[None]:
    """This process has them meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
        os.environ.update(before)


def recorded_answer(world: World, release: Release) -> bytes:
    """What the ensemble would answer `USER`, as bytes."""
    from benchmarks.canned_triton import answer_of
    from pinrec_core.recommend import Stages, recommend
    from services.gateway.resolve import resolve

    request = resolve(request_of(release), release, "r", int(time.time() * 1000), remaining_ms=60_000)
    [made] = recommend([request], Stages.open(release, world.batch_views))
    return answer_of(made, release.number)


def request_of(release: Release) -> GetCandidatesRequest:
    """One user, an equal share for each outcome."""
    budget = dict.fromkeys(release.vocabulary.outcomes, 1.0)
    surface = release.vocabulary.surfaces[0]
    return GetCandidatesRequest(user_id=USER, surface=surface, budget=budget, num_candidates=CANDIDATES)


# --- what is measured ---


async def load(one: Configuration, request: bytes, credentials: Credentials, seconds: float, callers: int) -> None:
    """`callers` calls at a time, each caller waiting for its answer before it asks again; adds one round's figures."""
    address = f"127.0.0.1:{one.port}"
    metadata = (("authorization", f"Bearer {credentials.token}"),) if "PINREC_TOKENS" in one.environment else ()
    secure = bool(one.environment)
    async with (
        grpc.aio.secure_channel(address, credentials.channel()) if secure else grpc.aio.insecure_channel(address)
    ) as channel:
        call = channel.unary_unary(METHOD)
        await call(request, metadata=metadata, timeout=10)  # the connection is there
        answered = 0
        began, cpu_began = time.perf_counter(), cpu_s(one.pid)
        end = began + seconds

        async def caller() -> None:
            nonlocal answered
            while time.perf_counter() < end:
                try:
                    await call(request, metadata=metadata, timeout=10)
                    answered += 1
                except grpc.aio.AioRpcError:
                    one.failed += 1

        await asyncio.gather(*(caller() for _ in range(callers)))
        one.per_second.append(answered / (time.perf_counter() - began))
        one.cpu_ms.append((cpu_s(one.pid) - cpu_began) / max(answered, 1) * 1_000)


def cpu_s(pid: int) -> float:
    """CPU that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / _TICKS_A_SECOND


def row_of(one: Configuration, plain: Configuration, is_bar: bool) -> Row:
    """A configuration against the plain one, round by round."""
    shares = [mine / theirs for mine, theirs in zip(one.per_second, plain.per_second, strict=True)]
    cost, low, high = 1 - median(shares), 1 - max(shares), 1 - min(shares)
    figures: dict[str, Any] = {
        "per_second": one.per_second,
        "cpu_ms": one.cpu_ms,
        "cost": cost,
        "cost_of_rounds": [1 - share for share in shares],
        "failed": one.failed,
    }
    measured = f"{median(one.per_second):.0f} requests/s, {median(one.cpu_ms):.2f} ms of CPU each"
    if one is not plain:
        measured += f"; {cost:.1%} fewer requests/s ({low:.1%} to {high:.1%} in a round)"
    if one.failed:
        measured += f"; {one.failed} failed"
    met = cost <= MOST_COST and not one.failed if is_bar else None
    return Row(one.name, f"at most {MOST_COST:.0%} fewer requests/s" if is_bar else "-", measured, met, figures)


def measure(world: World, seconds: float, rounds: int, callers: int) -> list[Row]:
    """All configurations, taking turns."""
    release = open_release(world.releases, 1, verify=False)
    answer = world.work / "answer.bin"
    answer.write_bytes(recorded_answer(world, release))
    request = request_of(release).SerializeToString()
    credentials = Credentials.make(fresh(world.work / "credentials"))
    with ExitStack() as running:
        running.enter_context(on_core(CALLER_CORE))
        compared = configurations(credentials, running.enter_context(collector()))
        triton, *ports = free_ports(1 + len(compared))
        started = ("benchmarks.canned_triton", str(answer), str(triton))
        running.enter_context(process(CALLER_CORE, world.work / "triton.log", {}, *started))
        for one, one.port in zip(compared, ports, strict=True):
            start(one, world, triton, running, credentials)
        for one in compared:  # warm-up: a gateway lets in more and more, as far as its stages stay quick
            asyncio.run(load(one, request, credentials, WARM_UP_S, callers))
            one.forget()
        for turn in range(rounds):
            for one in turns(compared, turn):
                asyncio.run(load(one, request, credentials, seconds, callers))
    plain = compared[0]
    return [show(row_of(one, plain, is_bar=one.name == DEPLOYED)) for one in compared]


def turns(compared: Sequence[Configuration], turn: int) -> Sequence[Configuration]:
    """Forward, then backward: what drifts meets all alike."""
    return compared if turn % 2 else compared[::-1]


@click.command()
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=Path("work/gateway-cost"))
@click.option("--seconds", default=4.0, show_default=True, help="Of load on one gateway in one round.")
@click.option("--rounds", default=9, show_default=True, type=click.IntRange(min=1))
@click.option("--callers", default=52, show_default=True, type=click.IntRange(min=1), help="Calls in flight.")
@click.option("--report", type=click.Path(path_type=Path, file_okay=False), help="Folder for gateway-cost.json.")
def main(work: Path, seconds: float, rounds: int, callers: int, report: Path | None) -> None:
    """Measure what TLS, tokens and tracing cost the gateway; exit code 1 if it is more than the bar allows."""
    world = make_world(work)
    write_serving_state(world.releases, ServingState(1, (1,)))
    rows = measure(world, seconds, rounds, callers)
    if report is not None:
        save(rows, report / "gateway-cost.json", "python -m benchmarks.gateway_cost --report docs/figures")
    finish(rows)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.gateway_cost")
