"""What is tried of the stack in containers: one function a row of the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import trustme

from benchmarks.chaos.table import Row
from deploy.docker.images import TARGETS, Engine
from deploy.docker.running import ROLES, Containers, seconds_until
from pinrec_core.errors import PinrecError, Unavailable
from services.common.client import connect
from services.common.tokens import Client, digest_of, new_token, write_clients
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.items_pb2 import DeleteItemsRequest
from services.proto.items_pb2_grpc import ItemServiceStub
from services.proto.signals_pb2 import AppendEventsRequest, Event
from services.proto.signals_pb2_grpc import SignalServiceStub

FIRST_NEW_USER = 1_000_000
STEADY = 20
"""Full answers in a row after which the service is taken to be back."""

KILL_STUB = """
import os, pathlib, signal
for process in pathlib.Path("/proc").glob("[0-9]*"):
    words = (process / "cmdline").read_bytes().split(b"\\0")
    if words[0].endswith(b"triton_python_backend_stub") and b"/generate/" in words[1]:
        os.kill(int(process.name), signal.SIGKILL)
        print(process.name)
"""


@dataclass(frozen=True)
class Callers:
    """Addresses of the published ports, on this machine."""

    gateway: str
    signals: str
    items: str
    prometheus: str

    def ask(self, user_id: int, budget: dict[str, float], count: int = 30) -> GetCandidatesResponse:
        """One request for a user's home. Raises PinrecError."""
        request = GetCandidatesRequest(user_id=user_id, surface="home", budget=budget, num_candidates=count)
        with connect(self.gateway, CandidateServiceStub) as stub:
            reply: GetCandidatesResponse = stub.GetCandidates(request, timeout=10)
        return reply

    def append(self, user_id: int, item_id: int) -> None:
        """One saved item, now. Raises PinrecError unless it is acknowledged."""
        now_ms = int(time.time() * 1000)
        event = Event(
            user_id=user_id, item_id=item_id, item_type="pin", action="save", surface="home", timestamp_ms=now_ms
        )
        with connect(self.signals, SignalServiceStub) as stub:
            stub.AppendEvents(AppendEventsRequest(events=[event]), timeout=10)

    def delete(self, item_id: int) -> None:
        """Never again to be returned. Raises PinrecError unless it is acknowledged."""
        with connect(self.items, ItemServiceStub) as stub:
            stub.DeleteItems(DeleteItemsRequest(item_ids=[item_id]), timeout=10)

    def query(self, path: str, **arguments: str) -> Any:
        """What Prometheus' HTTP interface answers."""
        url = f"http://{self.prometheus}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]


def images(engine: Engine, name: str, tag: str) -> Row:
    """What each image holds and weighs."""
    sizes = {
        target: int(json.loads(engine.run("image", "inspect", f"{name}/{target}:{tag}"))[0]["Size"]) / 1e6
        for target in TARGETS
    }
    found = engine.run(
        "run", "--rm", "--entrypoint", "python", f"{name}/gateway:{tag}", "-c",
        "import importlib.util as u; print([m for m in ('torch', 'faiss') if u.find_spec(m)])",
    ).strip()  # fmt: skip
    measured = ", ".join(f"{target} {size:.0f} MB" for target, size in sizes.items())
    return Row("images build", "no torch and no faiss in the gateway's", measured, found == "[]", {"megabytes": sizes})


def hardening(stack: Containers) -> Row:
    """Who the processes are and what they may."""
    wrong = []
    for service in ROLES:
        status = stack.inside(service, "cat", "/proc/1/status").splitlines()
        facts = {name: value.split() for name, _, value in (line.partition(":") for line in status)}
        if facts["Uid"] != ["1000"] * 4 or int(facts["CapEff"][0], 16) or facts["NoNewPrivs"] != ["1"]:
            wrong.append(f"{service}: {facts['Uid']} {facts['CapEff']} {facts['NoNewPrivs']}")
        if _succeeds(stack, service, "touch", "/srv/pinrec/written"):
            wrong.append(f"{service}: can write into its image")
    bar = "uid 1000, no capability, no new privileges, nothing in the image can be written"
    return Row("four roles are confined", bar, "; ".join(wrong) or "all four so", not wrong)


def _succeeds(stack: Containers, service: str, *command: str) -> bool:
    try:
        stack.inside(service, *command)
    except RuntimeError:
        return False
    return True


def started(after: dict[str, float]) -> Row:
    """Seconds until the health checks passed."""
    measured = ", ".join(f"{service} {seconds:.0f} s" for service, seconds in sorted(after.items(), key=lambda x: x[1]))
    return Row("stack starts", "every health check passes", measured, True, {"healthy_after_s": after})


def budgets(callers: Callers) -> Row:
    """Counts of outcomes against the budget: 30 candidates at 0.7 and 0.3 are 21 and 9."""
    wrong, times = 0, []
    for user_id in range(1, 101):
        start = time.perf_counter()
        reply = callers.ask(user_id, {"save": 0.7, "click": 0.3})
        times.append(1000 * (time.perf_counter() - start))
        wrong += Counter(c.outcome for c in reply.candidates) != {"save": 21, "click": 9} or reply.degraded
    median = sorted(times)[len(times) // 2]
    bar = "100 users, each 21 save + 9 click, none degraded"
    return Row("GetCandidates", bar, f"{wrong} wrong; median {median:.0f} ms", not wrong, {"median_ms": median})


def read_your_write(callers: Callers) -> Row:
    """Events of users whom nobody knows, in the very next request."""
    missed = 0
    for user_id in range(FIRST_NEW_USER, FIRST_NEW_USER + 20):
        best = callers.ask(user_id, {"save": 1.0}).candidates[0].item_id
        callers.append(user_id, best)
        reply = callers.ask(user_id, {"save": 1.0})
        missed += reply.realtime_events != 1 or best in {c.item_id for c in reply.candidates}
    return Row("read your write", "20 of 20 appended events in the next request", f"{20 - missed} of 20", not missed)


def deletion(callers: Callers) -> Row:
    """The best item of a user is deleted."""
    best = callers.ask(7, {"save": 1.0}).candidates[0].item_id
    callers.delete(best)
    seconds = seconds_until(lambda: best not in {c.item_id for c in callers.ask(7, {"save": 1.0}).candidates})
    return Row("deleted item", "gone within 1 s", f"{seconds:.2f} s", seconds <= 1, {"seconds": seconds})


def scraped(callers: Callers) -> Row:
    """Prometheus' targets and rules."""
    seconds_until(lambda: bool(_targets(callers)) and not _down(callers))
    targets, down = _targets(callers), _down(callers)
    seconds_until(lambda: all(rule["health"] != "unknown" for rule in _rules(callers)))
    broken = [rule["name"] for rule in _rules(callers) if rule["health"] != "ok"]
    measured = f"{len(targets) - len(down)} of {len(targets)} targets up, {len(_rules(callers))} rules, broken {broken}"
    return Row("Prometheus", "every target up, every rule evaluates", measured, bool(targets) and not (down or broken))


def _targets(callers: Callers) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = callers.query("targets", state="active")["activeTargets"]
    return targets


def _down(callers: Callers) -> list[str]:
    """Targets that were not scraped, or not yet."""
    return [target["labels"]["instance"] for target in _targets(callers) if target["health"] != "up"]


def _rules(callers: Callers) -> list[dict[str, Any]]:
    return [rule for group in callers.query("rules")["groups"] for rule in group["rules"]]


def dead_stub(stack: Containers, callers: Callers) -> Row:
    """The decoder's process dies inside the Triton container."""
    if not stack.inside("triton", "python", "-c", KILL_STUB).strip():
        raise RuntimeError("no stub of generate in the Triton container")
    return _back("kill -9 of a Triton stage", callers, 10.0)


def restart(stack: Containers, callers: Callers) -> Row:
    """The signal service's container is restarted; what was acknowledged before is still there."""
    user_id = FIRST_NEW_USER + 100
    callers.append(user_id, callers.ask(user_id, {"save": 1.0}).candidates[0].item_id)
    stack.restart("signals")
    row = _back("restart of the signals container", callers, 10.0)
    kept = callers.ask(user_id, {"save": 1.0}).realtime_events == 1
    return Row(row.what, f"{row.bar}; events kept", row.measured, bool(row.met) and kept, row.figures)


def _back(what: str, callers: Callers, bar_s: float) -> Row:
    """Ask until answers are whole again; what came meanwhile."""
    start, seen, in_a_row, back = time.monotonic(), Counter[str](), 0, 0.0
    while in_a_row < STEADY:
        if time.monotonic() > start + 120:
            raise RuntimeError(f"{what}: not back in 120 s; {dict(seen)}")
        try:
            reply = callers.ask(3, {"save": 1.0})
            answer = reply.degraded_reason if reply.degraded else "whole"
        except PinrecError as error:
            answer = error.code
        back = back if in_a_row else time.monotonic() - start
        in_a_row = in_a_row + 1 if answer == "whole" else 0
        seen[answer] += 1
    meanwhile = ", ".join(f"{count} {answer}" for answer, count in seen.items() if answer != "whole") or "nothing else"
    figures = {"seconds": back, "answers": dict(seen)}
    return Row(what, f"whole answers again within {bar_s:.0f} s", f"{back:.1f} s; {meanwhile}", back <= bar_s, figures)


def switch(callers: Callers, releases: Path) -> Row:
    """`pinrec release activate 2` from this machine, while the containers serve the folder."""
    command = [sys.executable, "-m", "services.cli.main", "release", "activate", "2", "--releases", str(releases)]
    done = subprocess.run([*command, "--gateway", callers.gateway], capture_output=True, text=True, check=False)
    if done.returncode:
        click.echo(done.stdout + done.stderr, err=True)
    number = callers.ask(3, {"save": 1.0}).release
    return Row("release activate 2", "the next request is of release 2", f"release {number}", number == 2)


def secured(stack: Containers, callers: Callers, secrets: Path) -> Row:
    """The stack behind TLS and tokens: who is served, and what others are told."""
    tokens = make_secrets(secrets)
    stack.up()
    as_log = {"PINREC_CLIENT_CA": str(secrets / "ca.crt"), "PINREC_TOKEN_FILE": str(tokens / "log.token")}
    as_ranking = {**as_log, "PINREC_TOKEN_FILE": str(tokens / "ranking.token")}
    seen = {
        "plaintext": _told(callers, {}),
        "no token": _told(callers, {"PINREC_CLIENT_CA": as_log["PINREC_CLIENT_CA"]}),
        "a token to append": _told(callers, as_log),
        "a token to read": _told(callers, as_ranking),
    }
    wanted = ["UNAVAILABLE", "UNAUTHENTICATED", "PERMISSION_DENIED", "a whole answer"]
    measured = "; ".join(f"{who}: {told}" for who, told in seen.items())
    return Row("deploy/docker/secure.yml", ", ".join(wanted), measured, list(seen.values()) == wanted)


def make_secrets(folder: Path) -> Path:
    """What secure.yml says, in `folder`; beside it a token for each of two callers, in the folder that is returned."""
    tokens = folder.with_name("tokens")
    for made in (folder, tokens):
        made.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    certificate = authority.issue_cert("gateway", "signals", "items", "triton", "memory", "localhost", "127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    (folder / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    clients = {}
    files = {"stack": folder / "token", "ranking": tokens / "ranking.token", "log": tokens / "log.token"}
    for name, path in files.items():
        token = new_token()
        path.write_text(token)
        clients[name] = Client(name, ("append" if name == "log" else "read",), (digest_of(token),))
    write_clients(folder / "tokens.toml", clients)
    for path in folder.iterdir():
        path.chmod(0o644)  # uid 1000 reads them in the containers; nothing outlives this run
    return tokens


def _told(callers: Callers, credentials: dict[str, str]) -> str:
    """What the gateway tells a caller with these variables set."""
    with patch.dict(os.environ, credentials):
        try:
            reply = callers.ask(3, {"save": 1.0})
        except PinrecError as error:
            return error.code if isinstance(error, Unavailable) else error.message.split()[0]
    return reply.degraded_reason or "a whole answer"


def stopped(stack: Containers) -> Row:
    """SIGTERM to each, the gateway first."""
    codes = {service: stack.stop(service) for service in reversed(ROLES)}
    tracebacks = [service for service in ROLES if "Traceback" in stack.logs(service)]
    measured = f"exit codes {codes}; tracebacks in the logs of {tracebacks or 'none'}"
    return Row(
        "stack stops", "exit code 0 each, no traceback in any log", measured, not any(codes.values()) and not tracebacks
    )
