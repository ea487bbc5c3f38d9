"""The pods of overlays/laptop, tried as containers of this machine, plain and with `secure` and `mtls`.

    python -m deploy.k8s.smoke --work work/k8s-smoke
    python -m deploy.k8s.smoke --work work/k8s-smoke --base localhost/pinrec-base:bookworm   # no image registry

Prints a row for each thing tried with its bar; exit code 1 if one is missed.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import grpc
import trustme

from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, make_world
from deploy.docker import checks
from deploy.docker.images import build, find_engine
from deploy.docker.running import seconds_until
from deploy.k8s.play import NETWORK, Node
from deploy.k8s.rendered import render
from pinrec_core.errors import PinrecError
from pinrec_core.release import activate
from services.common.tokens import Client, digest_of, new_token, write_clients
from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.candidates_pb2_grpc import CandidateServiceStub

IMAGES, TAG = "localhost/pinrec", "smoke"
PODS = ("items", "signals", "serving")
TOKENS = {"internal": ("read",), "caller": ("read", "append"), "admin": ("read", "admin")}
ASKING = 4
ROUND_ROBIN = [("grpc.lb_policy_name", "round_robin")]
READ_ONLY = ("/srv/pinrec/x", "/releases/x", "/x")
CALLER = ("PINREC_CLIENT_CA", "PINREC_CLIENT_CERT", "PINREC_CLIENT_KEY", "PINREC_TOKEN_FILE")


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for k8s-smoke.json.")
@click.option("--base", default="", help="Image to build on instead of the Dockerfile's; packages come as wheels.")
@click.option("--built", is_flag=True, help="Take the images that `make compose-smoke` has left.")
def main(work: Path, report: Path | None, base: str, built: bool) -> None:
    """Build the images, start the pods of the manifests, try them, stop them and print the table."""
    work = work.resolve()
    engine = find_engine()
    world = make_world(work / "world")
    activate(world.releases, 1)
    if not built:
        click.echo(f"building with {engine.program}")
        build(engine, IMAGES, TAG, base, work / "wheels")
    rows = []
    for name, components in (("plain", ()), ("secure", ("components/secure", "components/mtls"))):
        stack = render(["overlays/laptop", "toolbox"], components)
        node = Node(engine, stack, IMAGES, TAG, folders(work / name, world))
        node.clear()
        engine.run("network", "create", NETWORK)
        try:
            with credentials(work / name, on=bool(components)):
                rows += [show(row) for row in tried(node, name)]
        finally:
            node.clear()
    if report is not None:
        save(rows, report / "k8s-smoke.json", f"make k8s-smoke{f' BASE={base}' if base else ''}")
    finish(rows)


def folders(work: Path, world: World) -> dict[str, Path]:
    """What stands for claims and secrets, new."""
    shutil.rmtree(work, ignore_errors=True)
    ca, token = trustme.CA(), {name: new_token() for name in TOKENS}
    made = {"releases": work / "releases", "batch-view": world.batch_views, "config": work / "config"}
    for name in ("signals-data", "items-data", "tokens", *(f"{role}-token" for role in TOKENS)):
        made[name] = work / name
        made[name].mkdir(parents=True)
        made[name].chmod(0o777)  # of this machine's user; the containers' is another
    shutil.copytree(world.releases, made["releases"])
    for path in (made["releases"], *made["releases"].rglob("*")):
        path.chmod(0o777)
    for role in ("gateway", "signals", "items", "toolbox", "caller"):
        folder = made[f"{role}-tls"] = work / f"{role}-tls"
        folder.mkdir(exist_ok=True)
        issued = ca.issue_cert(role, "localhost")
        (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        (folder / "tls.key").write_bytes(issued.private_key_pem.bytes())
        (folder / "ca.crt").write_bytes(ca.cert_pem.bytes())
    clients = {name: Client(name, scopes, (digest_of(token[name]),)) for name, scopes in TOKENS.items()}
    write_clients(made["tokens"] / "tokens.toml", clients)
    (made["tokens"] / "tokens.toml").chmod(0o644)
    for name in TOKENS:
        (made[f"{name}-token"] / "token").write_text(token[name])
    return made


@contextmanager
def credentials(work: Path, *, on: bool) -> Iterator[None]:
    """What this process shows when it calls."""
    names = ("caller-tls/ca.crt", "caller-tls/tls.crt", "caller-tls/tls.key", "caller-token/token")
    files = dict(zip(CALLER, names, strict=True))
    if on:
        os.environ.update({name: str(work / file) for name, file in files.items()})
    try:
        yield
    finally:
        for name in CALLER:
            os.environ.pop(name, None)


def tried(node: Node, name: str) -> Iterator[Row]:
    """Every row, in the order in which things are done."""
    yield started(node, name)
    ports = {played.spec.spec["name"]: played.ports for played in node.running.values()}
    addresses = {"gateway": 8500, "signals": 8600, "items": 8700}
    callers = checks.Callers(
        **{role: f"localhost:{ports[role][port]}" for role, port in addresses.items()}, prometheus=""
    )
    yield confined(node, name)
    for row in (checks.budgets(callers), checks.read_your_write(callers)):
        yield replace(row, what=f"{row.what} ({name})")
    if name == "secure":
        yield strangers(callers)
    yield switched(node, callers, name)
    if name == "plain":
        yield replaced(node, callers)
    yield frozen(node, callers, name)
    yield stopped(node, name)


def started(node: Node, name: str) -> Row:
    """Every pod by its own probes; nothing is started in any order but that inside a pod."""
    start = time.monotonic()
    for owner in PODS:
        node.start(owner)
    for one in node.running:
        node.await_start(one)
    seconds = time.monotonic() - start
    later = [(one, kind) for one in node.running for kind in _later_probes(node, one)]
    failing = [f"{one} {kind}" for one, kind in later if not node.passes(one, kind)]
    bar = "every startup, readiness and liveness probe passes"
    measured = f"all started after {seconds:.0f} s; failing {failing or 'none'}"
    return Row(f"pods start ({name})", bar, measured, not failing, {"seconds": seconds})


def _later_probes(node: Node, one: str) -> list[str]:
    return [kind for kind in ("readinessProbe", "livenessProbe") if kind in node.running[one].spec.spec]


def confined(node: Node, name: str) -> Row:
    """Who the processes are and what they may."""
    wrong = []
    for one in node.running:
        status = node.read(one, "cat", "/proc/1/status").splitlines()
        facts = {key: value.split() for key, _, value in (line.partition(":") for line in status)}
        if facts["Uid"] != ["1000"] * 4 or int(facts["CapEff"][0], 16) or facts["NoNewPrivs"] != ["1"]:
            wrong.append(f"{one}: {facts['Uid']} {facts['CapEff']} {facts['NoNewPrivs']}")
        wrong += [
            f"{one}: writes {path}"
            for path in ("/srv/pinrec/x", "/releases/x", "/x")
            if node.inside(one, "touch", path)
        ]
    bar = "uid 1000, no capability, no new privileges, neither image nor releases can be written"
    return Row(f"containers are confined ({name})", bar, "; ".join(wrong) or "all so", not wrong)


def switched(node: Node, callers: checks.Callers, name: str) -> Row:
    """`pinrec release activate 2` from the toolbox."""
    node.start("toolbox")
    words = ("sh", "/toolbox/pinrec.sh", "release", "activate", "2", "--gateway", "gateway:8500")
    node.read("toolbox/toolbox", *words)
    number = callers.ask(3, {"save": 1.0}).release
    bar = "the next request is of release 2"
    return Row(f"release activated from the toolbox ({name})", bar, f"release {number}", number == 2)


def replaced(node: Node, callers: checks.Callers) -> Row:
    """A second serving pod comes and goes, as in a rollout, while requests go to both in turn."""
    second = replace(node, replica="1", running={})
    second.start("serving")
    second.await_start("serving/gateway")
    ports = [one.running["serving/gateway"].ports[8500] for one in (node, second)]
    address = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with ThreadPoolExecutor() as pool, grpc.insecure_channel(address, ROUND_ROBIN) as channel:
        over = threading.Event()
        answers = [pool.submit(_ask_until, over, CandidateServiceStub(channel)) for _ in range(ASKING)]
        time.sleep(3)
        took = sum(second.stop(one, 45)[1] for one in ("serving/gateway", "serving/triton"))
        time.sleep(3)
        over.set()
        codes = Counter(code for asked in answers for code in asked.result())
    met = set(codes) == {"whole"}
    measured = f"{dict(codes)}; the pod was gone after {took:.0f} s"
    return Row(
        "a serving pod of two goes (plain)", "0 failed or degraded requests", measured, met, {"answers": dict(codes)}
    )


def _ask_until(over: threading.Event, stub: CandidateServiceStub) -> list[str]:
    """What each request came to."""
    request = GetCandidatesRequest(user_id=1, surface="home", budget={"save": 1.0}, num_candidates=10)
    codes = []
    while not over.is_set():
        try:
            reply = stub.GetCandidates(request, timeout=5)
            codes.append("degraded" if reply.degraded else "whole")
        except grpc.RpcError as error:
            codes.append(error.code().name)
        time.sleep(0.05)
    return codes


def strangers(callers: checks.Callers) -> Row:
    """Who shows a certificate without a token, and who shows neither."""
    kept = {name: os.environ.pop(name) for name in CALLER}
    codes = []
    for shown in (CALLER[:3], CALLER[:1], ()):
        os.environ.update({name: kept[name] for name in shown})
        try:
            callers.ask(1, {"save": 1.0})
            codes.append("answered")
        except PinrecError as error:
            codes.append(error.message.partition(" ")[0] if "UNAUTHENTICATED" in error.message else error.code)
        for name in shown:
            del os.environ[name]
    os.environ.update(kept)
    bar = "UNAUTHENTICATED without a token; no connection without a certificate, and none without TLS"
    met = codes == ["UNAUTHENTICATED", "UNAVAILABLE", "UNAVAILABLE"]
    return Row("strangers (secure)", bar, ", ".join(codes), met)


def frozen(node: Node, callers: checks.Callers, name: str) -> Row:
    """Triton stops answering: its liveness fails, the gateway's does not, and the pod stays ready."""
    triton = node.running["serving/triton"].name
    node.engine.run("pause", triton)
    try:
        time.sleep(12)  # two canaries get lost
        seen = {
            "Triton is live": node.passes("serving/triton", "livenessProbe"),
            "gateway is live": node.passes("serving/gateway", "livenessProbe"),
            "pod is ready": node.passes("serving/gateway", "readinessProbe"),
        }
        reply = callers.ask(1, {"save": 1.0})
        seen["answers are popular lists"] = reply.degraded and all(one.filled for one in reply.candidates)
    finally:
        node.engine.run("unpause", triton)
    seconds = seconds_until(lambda: not callers.ask(1, {"save": 1.0}).degraded)
    wanted = {"Triton is live": False, "gateway is live": True, "pod is ready": True, "answers are popular lists": True}
    measured = f"{', '.join(f'{what}: {value}' for what, value in seen.items())}; whole again after {seconds:.1f} s"
    return Row(
        f"Triton frozen ({name})", "only Triton would be restarted", measured, seen == wanted, {"back_s": seconds}
    )


def stopped(node: Node, name: str) -> Row:
    """As a node stops pods: SIGTERM, sidecars after the others, what is left killed when the grace is over."""
    ended, in_time = {}, True
    for owner in reversed(PODS):
        of_pod = [one for one in node.running.values() if one.spec.owner == owner]
        left = float(of_pod[0].spec.pod["spec"]["terminationGracePeriodSeconds"])
        for one in sorted(of_pod, key=lambda played: played.spec.is_sidecar):
            left -= one.spec.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            code, seconds = node.stop(one.spec.name, left)
            left -= seconds
            ended[one.spec.name] = (code, round(seconds, 1))
        in_time &= left > 0
    codes = {one: f"{code} after {seconds} s" for one, (code, seconds) in ended.items()}
    met = in_time and all(code == 0 for code, _ in ended.values())
    return Row(f"pods stop ({name})", "exit code 0 each, within the grace", str(codes), met, {"ended": ended})


if __name__ == "__main__":
    main()
