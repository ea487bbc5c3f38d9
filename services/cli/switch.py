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


def switch(
    root: Path, number: int, gateways: Sequence[Gateway], wait_s: float, say: Callable[[str], None]
) -> ServingState:
    """Serve release `number` and close the one before. `wait_s` bounds each wait; `say` is told each step.

    Raises InvalidRelease or ReleaseRefused if the old release stays active; Unavailable if a gateway does not follow,
    which the same call again completes; ReleasesLocked.
    """
    with activation_lock(root):
        opened = open_release(root, number, verify=True)
        say(f"release {number} is whole: {len(opened.manifest['files'])} files fit their checksums")
        for gateway in gateways:
            gateway.status()
        state = serving_state(root)
        if not {*state.open} <= {state.active, number}:  # left by a switch that was interrupted
            state = _settled(root, state, gateways, wait_s, say)
        if state.active != number:
            _try(root, state, number, gateways, wait_s, say)
            state = switched(state, number)
            write_serving_state(root, state)
            say(f"release {number} is active")
        return _settled(root, state, gateways, wait_s, say)


def _try(
    root: Path,
    state: ServingState,
    number: int,
    gateways: Sequence[Gateway],
    wait_s: float,
    say: Callable[[str], None],
) -> None:
    """Have the release opened beside the active one and tried by every gateway; if it fails, closed again."""
    write_serving_state(root, ServingState(state.active, (state.active, number), state.previous))
    try:
        for gateway in gateways:
            say(_passed(gateway, gateway.try_release(number, wait_s)))
    except BaseException as error:
        write_serving_state(root, ServingState(state.active, (state.active,), state.previous))
        if isinstance(error, PinrecError):
            raise ReleaseRefused(f"release {number}: {error.message}; release {state.active} stays active") from error
        raise


def _passed(gateway: Gateway, tried: TryReleaseResponse) -> str:
    """A try in words. Raises ReleaseRefused if it failed."""
    if tried.problem:
        raise ReleaseRefused(f"refused by {gateway.address}: {tried.problem}")
    return (
        f"{gateway.address}: {tried.num_requests} golden requests passed; {tried.mean_overlap:.3f} of the expected "
        f"items came back ({tried.min_overlap:.3f} at worst), p50 {tried.p50_ms:.1f} ms, p99 {tried.p99_ms:.1f} ms"
    )


def _settled(
    root: Path, state: ServingState, gateways: Sequence[Gateway], wait_s: float, say: Callable[[str], None]
) -> ServingState:
    """Close all but the active release, once every gateway admits for it and the others' last requests have left."""
    deadline = time.monotonic() + wait_s
    for gateway in gateways:
        while lag := _lag(gateway, state.active):
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{lag}; release {state.active} is active, {list(state.open)} stay open: "
                    f"`pinrec release activate {state.active}` again completes the switch"
                )
            time.sleep(LOOK_S)
    settled = ServingState(state.active, (state.active,), state.previous)
    if settled != state:
        write_serving_state(root, settled)
        closed = sorted({*state.open} - {state.active})
        say(f"closed: {', '.join(map(str, closed))}")
    return settled


def _lag(gateway: Gateway, active: int) -> str:
    """What a gateway still has to do with other releases than the active one; empty if nothing."""
    try:
        status = gateway.status()
    except Unavailable as error:
        return error.message
    if status.admitted != active:
        return f"{gateway.address} still admits requests for release {status.admitted}"
    others = {release: count for release, count in status.in_flight.items() if release != active and count}
    return f"{gateway.address} has requests in flight by release: {others}" if others else ""
