"""Making another release the one that is served, with every gateway asked before and after.

Each step ends with one atomic write of serving.json, so that whatever dies leaves a state that serves, and the same
command again goes on from it:

    {"active": 1, "open": [1]}        verified on disk; nothing has changed
    {"active": 1, "open": [1, 2]}     the stages open 2 beside 1; every gateway sends 2's golden requests through them
    {"active": 2, "open": [1, 2]}     each gateway flips when a canary of 2 came back; requests of 1 are answered by 1
    {"active": 2, "open": [2]}        no gateway admits for 1 and none has a request of 1 left: the stages close it
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pinrec_core.errors import PinrecError, ReleaseRefused, Unavailable
from pinrec_core.release import ServingState, activation_lock, open_release, serving_state, write_serving_state
from pinrec_core.release.serving import switched
from services.common.client import connect
from services.proto.releases_pb2 import (
    GetReleaseStatusRequest,
    GetReleaseStatusResponse,
    TryReleaseRequest,
    TryReleaseResponse,
)
from services.proto.releases_pb2_grpc import ReleaseServiceStub

LOOK_S = 0.1
STATUS_TIMEOUT_S = 5.0


class Gateway(Protocol):
    """A gateway as a switch sees it; what does not answer raises a PinrecError."""

    address: str

    def status(self) -> GetReleaseStatusResponse:
        """What it admits requests for, and which requests it has in flight."""

    def try_release(self, number: int, timeout_s: float) -> TryReleaseResponse:
        """Wait until its stages have opened a release, and send the golden requests."""


class RemoteGateway:
    """The gateway at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def status(self) -> GetReleaseStatusResponse:
        """As `Gateway.status`."""
        with connect(self.address, ReleaseServiceStub) as stub:
            reply: GetReleaseStatusResponse = stub.GetReleaseStatus(GetReleaseStatusRequest(), timeout=STATUS_TIMEOUT_S)
        return reply

    def try_release(self, number: int, timeout_s: float) -> TryReleaseResponse:
        """As `Gateway.try_release`."""
        with connect(self.address, ReleaseServiceStub) as stub:
            reply: TryReleaseResponse = stub.TryRelease(TryReleaseRequest(release=number), timeout=timeout_s)
        return reply


@dataclass(frozen=True)
class Switch:
    """Changes which release under `root` is served. `wait_s` bounds each wait; `say` is told each step."""

    root: Path
    gateways: Sequence[Gateway]
    wait_s: float
    say: Callable[[str], None]

    def to(self, number: int) -> ServingState:
        """Serve release `number` and close the one before.

        Raises InvalidRelease or ReleaseRefused if the old release stays active; Unavailable if a gateway does not
        follow, which the same call again completes; ReleasesLocked.
        """
        with activation_lock(self.root):
            self._verify(number)
            for gateway in self.gateways:
                gateway.status()  # each must answer before anything changes
            state = serving_state(self.root)
            if not {*state.open} <= {state.active, number}:  # left by a switch that was interrupted
                state = self._settle(state)
            if state.open == (number,):
                self.say(f"release {number} is active already")
            elif state.active != number:
                self._try(state, number)
                state = switched(state, number)
                write_serving_state(self.root, state)
                self.say(f"release {number} is active")
            return self._settle(state)

    def _verify(self, number: int) -> None:
        """Hold every file to its checksum."""
        opened = open_release(self.root, number)
        self.say(f"release {number} is whole: {len(opened.manifest['files'])} files fit their checksums")

    def _try(self, state: ServingState, number: int) -> None:
        """Have the release opened beside the active one and tried by every gateway; if it fails, closed again."""
        write_serving_state(self.root, ServingState(state.active, (state.active, number), state.previous))
        try:
            for gateway in self.gateways:
                self.say(_passed(gateway, gateway.try_release(number, self.wait_s)))
        except BaseException as error:
            write_serving_state(self.root, ServingState(state.active, (state.active,), state.previous))
            if isinstance(error, PinrecError):
                words = f"release {number}: {error.message}; release {state.active} stays active"
                raise ReleaseRefused(words) from error
            raise

    def _settle(self, state: ServingState) -> ServingState:
        """Close all but the active release, once no gateway admits or answers requests for another."""
        deadline = time.monotonic() + self.wait_s
        for gateway in self.gateways:
            while lag := _lag(gateway, state.active):
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{lag}; release {state.active} is active, {list(state.open)} stay open: "
                        f"`pinrec release activate {state.active}` again completes the switch"
                    )
                time.sleep(LOOK_S)
        settled = ServingState(state.active, (state.active,), state.previous)
        if settled != state:
            write_serving_state(self.root, settled)
            self.say(f"closed: {', '.join(str(number) for number in state.open if number != state.active)}")
        return settled


def _passed(gateway: Gateway, tried: TryReleaseResponse) -> str:
    """A try in words. Raises ReleaseRefused if it failed."""
    if tried.problem:
        raise ReleaseRefused(f"refused by {gateway.address}: {tried.problem}")
    return (
        f"{gateway.address}: {tried.num_requests} golden requests passed; {tried.mean_overlap:.3f} of the expected "
        f"items came back ({tried.min_overlap:.3f} at worst), p50 {tried.p50_ms:.1f} ms, p99 {tried.p99_ms:.1f} ms"
    )


def _lag(gateway: Gateway, active: int) -> str:
    """What a gateway still has to do with other releases than the active one; empty if nothing."""
    try:
        status = gateway.status()
    except PinrecError as error:
        return error.message
    if not status.admitted:
        return f"{gateway.address}: not every process admits requests for release {active} yet"
    if status.admitted != active:
        return f"{gateway.address} still admits requests for release {status.admitted}"
    others = {release: count for release, count in status.in_flight.items() if release != active and count}
    return f"{gateway.address} has requests in flight by release: {others}" if others else ""
