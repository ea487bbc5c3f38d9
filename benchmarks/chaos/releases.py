"""Releases and items under load: switches, damaged releases, deletions, additions; on the real stack.

    python -m benchmarks.chaos.releases --work work/chaos-release --report docs/figures

Prints a row for each promise with its bar; exit code 1 if one is missed.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import asyncio
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import click
import grpc
import numpy as np

from benchmarks.chaos import adding
from benchmarks.chaos.calling import NUM_CANDIDATES, capacity_rps, request_of
from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.mutations import Mutation, copy_as, mutations, refusal
from benchmarks.chaos.parts import pss_mb
from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import make_world
from loadtest.open_loop import Call, open_loop, percentiles_ms
from pinrec_core import release as releases
from services.cli.switch import RemoteGateway, Switch
from services.common.probe import serves
from services.proto.candidates_pb2 import GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.items_pb2 import DeleteItemsRequest
from services.proto.items_pb2_grpc import ItemServiceStub

SHARE_OF_CAPACITY = 0.5
CAPACITY_CALLERS, PAUSE_S = (8,), 1.0
P99_BAR = 2.0
DELETE_EVERY_S = 0.25
GRACE_S = 1.0
"""How long after its acknowledgement a deleted item may still be returned."""
_OPTIONS = [("grpc.max_reconnect_backoff_ms", 500)]

Send = Callable[[int], Awaitable[GetCandidatesResponse]]
"""Makes call number i."""


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for chaos-release.json.")
@click.option("--switches", default=20, show_default=True, help="How often the release is switched under load.")
@click.option("--requests", default=10_000, show_default=True, help="Requests while items are deleted.")
@click.option("--items", default=1_000_000, show_default=True, help="Items of the index that grows under load.")
def main(work: Path, report: Path | None, switches: int, requests: int, items: int) -> None:
    """Try every promise and print the table."""
    world = make_world(work / "world")
    with running(world, work / "state") as fleet:
        target = Target(fleet)
        rows = [show(row) for row in asyncio.run(target.switch_under_load(switches))]
        rows += [show(row) for row in asyncio.run(target.delete_under_load(requests))]
        rows.append(show(damaged_releases(fleet, mutations(world.releases / "2"))))
    rows += [show(row) for row in adding.measure(work / "adding", items)]
    if report is not None:
        save(rows, report / "chaos-release.json", "make chaos-release")
    finish(rows)


def pinrec(*words: str) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "services.cli.main", *words]


class Target:
    """A running stack that is asked for candidates while something else is done to it.

    `capacity_s` and `baseline_s`: how long the capacity is measured, and the load before the first switch.
    """

    def __init__(self, fleet: Fleet, capacity_s: float = 10.0, baseline_s: float = 20.0) -> None:
        self._fleet = fleet
        self._capacity_s = capacity_s
        self._baseline_s = baseline_s

    async def switch_under_load(self, switches: int) -> list[Row]:
        """Activate release 2 and roll back, again and again, at half of the capacity."""
        async with grpc.aio.insecure_channel(self._fleet.gateway, _OPTIONS) as channel:
            send = _sender(CandidateServiceStub(channel))
            capacity, stop = await self._capacity(), asyncio.Event()
            rate = capacity * SHARE_OF_CAPACITY
            load = asyncio.create_task(open_loop(send, rate, 3_600, stop=stop))
            start = time.monotonic()
            await asyncio.sleep(self._baseline_s)
            windows = []
            for number in range(switches):
                began = time.monotonic()
                await self._release(*(("activate", "2") if number % 2 == 0 else ("rollback",)))
                windows.append((began, time.monotonic()))
                await asyncio.sleep(PAUSE_S)
            # Reading a process's memory map holds it up, so memory is looked at in one more switch.
            memory = {"before_mb": pss_mb(self._sessions()), "peak_mb": await self._peak_mb("rollback")}
            stop.set()
            calls = await load
        return self._switch_rows(calls, start, windows, {"capacity_rps": capacity, **memory})

    async def _capacity(self) -> float:
        return await capacity_rps(self._fleet.gateway, self._capacity_s, CAPACITY_CALLERS)

    async def _release(self, *verb: str) -> None:
        """Run `pinrec release ...`. Raises RuntimeError with its output if it fails."""
        words = ("release", *verb, "--releases", str(self._fleet.stack.releases), "--gateway", self._fleet.gateway)
        process = await asyncio.create_subprocess_exec(
            *pinrec(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"pinrec {' '.join(words)}: {output.decode()}")

    async def _peak_mb(self, *verb: str) -> float:
        """The stack's largest memory during one such command."""
        done, peak_mb = asyncio.create_task(self._release(*verb)), 0.0
        while not done.done():
            peak_mb = max(peak_mb, await asyncio.to_thread(pss_mb, self._sessions()))
            await asyncio.wait([done], timeout=0.1)
        await done
        return peak_mb

    def _switch_rows(
        self, calls: list[Call], start: float, windows: list[tuple[float, float]], figures: dict[str, float]
    ) -> list[Row]:
        before = [call for call in calls if call.scheduled_s < start + self._baseline_s]
        during = [call for call in calls if any(began <= call.scheduled_s <= ended for began, ended in windows)]
        failed, refused = failures(calls)
        answered = {call.answer.release for call in calls if call.answer is not None}
        mixed = self._metric("pinrec_gateway_mixed_release_total")
        (p99_before,), (p99_during,) = percentiles_ms(before, 99), percentiles_ms(during, 99)
        seconds = [ended - began for began, ended in windows]
        figures = {
            **figures, "calls": len(calls), "failed": failed, "refused": refused, "mixed": mixed,
            "releases": len(answered), "p99_before_ms": p99_before, "p99_during_ms": p99_during,
            "switch_s_median": float(np.median(seconds)),
        }  # fmt: skip
        return [
            Row(
                f"activate / rollback at {SHARE_OF_CAPACITY:.0%} of capacity, {len(windows)} times",
                "0 failed, 0 refused, 0 mixed",
                f"{len(calls):,} calls, {failed} failed, {refused} refused for load, {mixed:.0f} mixed, "
                f"answered by releases {sorted(answered)}; "
                f"a switch takes {np.median(seconds):.1f} s (median)",
                failed == refused == mixed == 0 and answered == {1, 2},
                figures,
            ),
            Row(
                "p99 during a switch / before",
                f"<= {P99_BAR}",
                f"{p99_during / p99_before:.2f} ({p99_during:.1f} ms against {p99_before:.1f} ms)",
                p99_during / p99_before <= P99_BAR,
                figures,
            ),
            Row(
                "memory of the stack (PSS) while two releases are open / before",
                "stated",
                f"{figures['peak_mb']:.0f} MB / {figures['before_mb']:.0f} MB",
                None,
                figures,
            ),
        ]

    async def delete_under_load(self, requests: int) -> list[Row]:
        """Delete items that were just returned; none may come back a second after its acknowledgement."""
        async with (
            grpc.aio.insecure_channel(self._fleet.gateway, _OPTIONS) as channel,
            grpc.aio.insecure_channel(self._fleet.items, _OPTIONS) as to_items,
        ):
            latest: list[int] = []
            send, items = _sender(CandidateServiceStub(channel), latest), ItemServiceStub(to_items)
            rate, gone = await self._capacity() * SHARE_OF_CAPACITY, {}
            load = asyncio.create_task(open_loop(send, rate, requests / rate * 1.1, seed=1))
            while not load.done():
                item = next((one for one in latest if one not in gone), None)
                if item is not None:
                    await items.DeleteItems(DeleteItemsRequest(item_ids=[item]), timeout=10)
                    gone[item] = time.monotonic()
                await asyncio.wait([load], timeout=DELETE_EVERY_S)
            calls = load.result()
        returned = sum(came_back(call, gone) for call in calls)
        short = sum(call.answer is not None and len(call.answer.candidates) < NUM_CANDIDATES for call in calls)
        failed, refused = failures(calls)
        figures = {
            "refused": refused,
            "requests": len(calls),
            "deleted": len(gone),
            "returned": returned,
            "short": short,
            "failed": failed,
        }
        return [
            Row(
                f"a deleted item is returned later than its acknowledgement + {GRACE_S:.0f} s",
                "0 in 10,000 requests under load",
                f"{returned} in {len(calls):,} requests while {len(gone)} items were deleted; {short} lists short, "
                f"{failed} failed, {refused} refused for load",
                returned == short == failed == 0 and bool(gone),
                figures,
            )
        ]

    def _sessions(self) -> list[int]:
        return [session for sessions in self._fleet.sessions.values() for session in sessions]

    def _metric(self, name: str) -> float:
        url = f"http://{self._fleet.stack.host}:{self._fleet.stack.gateway_metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def _sender(stub: CandidateServiceStub, latest: list[int] | None = None) -> Send:
    """Call i asks for user i's candidates; `latest` is told the newest answer's items."""

    async def send(number: int) -> GetCandidatesResponse:
        answer: GetCandidatesResponse = await stub.GetCandidates(request_of(number), timeout=5)
        if latest is not None:
            latest[:] = [candidate.item_id for candidate in answer.candidates]
        return answer

    return send


def failures(calls: Sequence[Call]) -> tuple[int, int]:
    """Calls that failed, and those that were refused since too many came at once."""
    refused = sum(call.code is grpc.StatusCode.RESOURCE_EXHAUSTED for call in calls)
    return sum(call.code is not grpc.StatusCode.OK for call in calls) - refused, refused


def came_back(call: Call, gone: dict[int, float]) -> bool:
    """Whether an answer that was asked for after the grace time holds an item that was gone by then."""
    if call.answer is None:
        return False
    sent_s = call.scheduled_s + call.late_s
    return any(gone.get(candidate.item_id, sent_s) + GRACE_S < sent_s for candidate in call.answer.candidates)


def damaged_releases(fleet: Fleet, listed: Sequence[Mutation]) -> Row:
    """Try to activate damaged copies of release 2 on the running stack, by the verb's own function."""
    root, reasons = fleet.stack.releases, []
    state = releases.serving_state(root)
    switch = Switch(root, [RemoteGateway(fleet.gateway)], wait_s=60, say=lambda _: None)
    for number, mutation in enumerate(listed, start=100):
        folder = copy_as(root, 2, number)
        mutation.apply(folder, root / "1")
        reasons.append(refusal(lambda number=number: switch.to(number)))
        shutil.rmtree(folder)
    untouched = releases.serving_state(root) == state and serves(fleet.gateway)
    return Row(
        f"damaged releases ({len(listed)} mutations)",
        "all refused with the reason, service untouched",
        f"{sum(map(bool, reasons))} refused; service {'untouched' if untouched else 'CHANGED'}",
        all(reasons) and len(reasons) == len(listed) and untouched,
        {"reasons": dict(zip([m.name for m in listed], reasons, strict=True))},
    )


if __name__ == "__main__":
    main()
