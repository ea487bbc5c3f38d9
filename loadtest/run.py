"""A load test from a clone: the demo's release if there is none, its stack if nothing answers, then a profile.

    python -m loadtest.run --profile loadtest/profiles/mixed.toml

Measures what the stack can do, asks for a share of it at Poisson times with bursts (open loop), then lets locust users
ask without a pause (closed loop). Prints both beside the profile's limits; exit code 1 if one is exceeded.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import grpc

from benchmarks.chaos.table import Row, finish, show
from loadtest.open_loop import Bursts, Call, closed_loop, open_loop, percentiles_ms
from loadtest.plan import LimitsPlan, Plan, read_plan
from loadtest.traffic import Traffic
from pinrec_core.errors import Unavailable
from services.cli.demo import GATEWAY, STORIES, Paths, clear, prepare, running_stack
from services.common.client import open_aio_channel
from services.common.one_line import one_line_errors
from services.common.probe import serves
from services.proto.candidates_pb2_grpc import CandidateServiceStub

METHOD = "GetCandidates"
CAPACITY_CALLERS, CAPACITY_S = 16, 4.0
ROOT = Path(__file__).resolve().parents[1]


@click.command()
@click.option("--profile", default="loadtest/profiles/mixed.toml", show_default=True, type=click.Path(path_type=Path))
@click.option("--address", default=GATEWAY, show_default=True, help="Gateway to ask.")
@click.option(
    "--world", default="movielens", show_default=True, type=click.Choice(list(STORIES)), help="Demo to serve."
)
@click.option("--work", type=click.Path(path_type=Path), help="The demo's folder.  [default: work/demo-WORLD]")
def main(profile: Path, address: str, world: str, work: Path | None) -> None:
    """Run a load profile."""
    paths = Paths(work or Path("work") / f"demo-{world}")
    with one_line_errors():
        plan = read_plan(profile)
        with answering(address, world, paths):
            rows = [show(row) for row in asyncio.run(open_rows(address, plan, paths.releases))]
            rows += [show(closed_row(address, plan, profile, paths.releases))]
    finish(rows)


@contextmanager
def answering(address: str, world: str, paths: Paths) -> Iterator[None]:
    """Whatever serves at the address already, or the demo's stack, made first if it was never made."""
    if address != GATEWAY or serves(address):
        yield
        return
    if not (paths.releases / "serving.json").exists():
        clear(paths.work)
        prepare(STORIES[world], paths)
    with running_stack(paths):
        yield


async def open_rows(address: str, plan: Plan, releases: Path) -> list[Row]:
    """What the stack can do, and the open loop at the profile's rate, each figure against its limit."""
    traffic, arrivals = Traffic.of(plan.traffic, releases), plan.arrivals
    bursts = Bursts(arrivals.burst_times, arrivals.burst_every_s, arrivals.burst_s)
    async with open_aio_channel(address) as channel:
        send = sender(CandidateServiceStub(channel), traffic)
        rate = arrivals.rate or arrivals.share_of_capacity * await capacity_rps(send)
        calls = await open_loop(send, rate, arrivals.seconds, bursts=bursts)
    return judged(calls, rate, plan.limits)


def sender(stub: CandidateServiceStub, traffic: Traffic) -> Callable[[int], Awaitable[str]]:
    """Makes call i, and says how it was degraded if it was."""

    async def send(number: int) -> str:
        request = traffic.draw(random.Random(number))
        reply = await stub.GetCandidates(request, timeout=traffic.plan.deadline_s)
        return str(reply.degraded_reason)

    return send


async def capacity_rps(send: Callable[[int], Awaitable[str]]) -> float:
    """Answers a second that callers without a pause get, after as many to warm up. Raises Unavailable without any."""
    for _ in range(2):
        calls = await closed_loop(send, CAPACITY_CALLERS, CAPACITY_S)
        answered = sum(call.code is grpc.StatusCode.OK for call in calls)
        if not answered:
            raise Unavailable(f"none of {len(calls)} calls was answered; {calls[-1].code.name}: {calls[-1].details}")
    return answered / CAPACITY_S


def judged(calls: list[Call], rate: float, limits: LimitsPlan) -> list[Row]:
    """A row a limit. Latencies count from the scheduled time."""
    codes = Counter(call.code for call in calls)
    refused = codes[grpc.StatusCode.RESOURCE_EXHAUSTED]
    failed = len(calls) - codes[grpc.StatusCode.OK] - refused
    degraded = sum(bool(call.answer) for call in calls)
    p50, p99 = percentiles_ms(calls, 50, 99)
    late_ms = max((1000 * call.late_s for call in calls), default=0.0)
    what = f"open loop, {rate:.0f}/s and bursts, {len(calls):,} calls"
    shares = {"failed": failed, "refused": refused, "degraded": degraded}
    rows = [
        Row(f"{what}: p50", f"<= {limits.p50_ms:.0f} ms", f"{p50:.1f} ms", p50 <= limits.p50_ms),
        Row(f"{what}: p99", f"<= {limits.p99_ms:.0f} ms", f"{p99:.1f} ms (sent at most {late_ms:.0f} ms late)",
            p99 <= limits.p99_ms),
    ]  # fmt: skip
    for name, count in shares.items():
        limit = getattr(limits, name)
        met = count <= limit * len(calls)
        rows.append(Row(f"{what}: {name}", f"<= {limit:.1%}", f"{count} ({count / max(1, len(calls)):.2%})", met))
    return rows


def closed_row(address: str, plan: Plan, profile: Path, releases: Path) -> Row:
    """Locust, headless, on the same profile."""
    users, limits = plan.closed.users, plan.limits
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--headless", "--only-summary", "--json"]
    command += ["--users", str(users), "--spawn-rate", str(users), "--run-time", f"{plan.closed.seconds:.0f}s"]
    environment = {
        **os.environ,
        "PINREC_LOAD_PROFILE": str(profile.resolve()),
        "PINREC_RELEASES": str(releases.resolve()),
    }
    run = subprocess.run([*command, "--host", address], cwd=ROOT, env=environment, capture_output=True, text=True)
    if not run.stdout.strip():
        return Row("closed loop", "locust runs", run.stderr[-500:], False)
    counts = {one["name"]: one for one in json.loads(run.stdout)}
    refused = counts.get(f"{METHOD}, refused", {"num_requests": 0})["num_requests"]
    asked = counts.get(METHOD, {"num_requests": 0, "num_failures": 0, "total_response_time": 0.0})
    failed, answered = asked["num_failures"], asked["num_requests"] - asked["num_failures"]
    mean_ms = asked["total_response_time"] / max(1, asked["num_requests"])
    return Row(
        f"closed loop, locust, {users} users: failed",
        f"<= {limits.failed:.1%}",
        f"{failed}; {answered / plan.closed.seconds:.0f} answers/s, mean {mean_ms:.0f} ms, {refused} refused",
        answered > 0 and failed <= limits.failed * asked["num_requests"],
    )


if __name__ == "__main__":
    main()
