"""Who calls, may it, and how often: one table from methods to scopes, and the gate that every call passes.

A look at health stays open, so that probes need no secret. All else is refused alike before it is known who asks: a
method that does not exist, a message that cannot be read, a method of another scope.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from pinrec_core.errors import InvalidConfig, LimitExceeded, NotAllowed, Overloaded, PinrecError, Unauthenticated
from services.common.errors import status_of
from services.common.limits import Allowance
from services.common.metrics import AccessMetrics
from services.common.tokens import Client, digest_of, read_clients

OPEN = "/grpc.health.v1.Health/Check"
"""What nobody needs a token for: it is answered at once and holds nothing."""

AUTHORIZATION = "authorization"
BEARER = "bearer "
"""Of any case (RFC 7235, section 2.1)."""

RETRY_PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata of a refused call: milliseconds until it is worth trying again, -1 = do not retry by yourself."""

_LONGEST_PUSHBACK_S = 60.0
"""A client that would wait longer is told not to retry."""

QUIET_S = 1.0
"""Between two lines about callers that are refused: whoever tries tokens must not fill the log."""

_SHOWN_CHARS = 100

_LOOK_S = 1.0
"""How often the tokens file is looked at."""

log = logging.getLogger(__name__)


def _one(message: Any) -> int:
    return 1


def _each(message: Any) -> int:
    """A batch costs what its users would have cost one by one."""
    return max(1, len(message.requests))


@dataclass(frozen=True)
class Rule:
    """Which scope a method wants, how many requests one message of it is, and whether messages come as a stream."""

    scope: str
    requests: Callable[[Any], int] = _one
    streamed: bool = False


METHODS = {
    "/pinrec.v1.CandidateService/GetCandidates": Rule("read"),
    "/pinrec.v1.CandidateService/BatchGetCandidates": Rule("read", _each),
    "/pinrec.v1.ReleaseService/GetReleaseStatus": Rule("read"),
    "/pinrec.v1.ReleaseService/TryRelease": Rule("admin"),
    "/pinrec.v1.SignalService/AppendEvents": Rule("append"),
    "/pinrec.v1.SignalService/AppendEventsStream": Rule("append", streamed=True),
    "/pinrec.v1.SignalService/GetHistories": Rule("read", _each),
    "/pinrec.v1.SignalService/GetStatus": Rule("read"),
    "/pinrec.v1.SignalService/Backup": Rule("admin"),
    "/pinrec.v1.ItemService/AddItems": Rule("append"),
    "/pinrec.v1.ItemService/DeleteItems": Rule("append"),
    "/pinrec.v1.ItemService/GetChanges": Rule("read"),
    "/pinrec.v1.ItemService/ListItems": Rule("read"),
    "/pinrec.v1.ItemService/GetItemStatus": Rule("read"),
    "/grpc.health.v1.Health/Watch": Rule("read"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule("read", streamed=True),
    # Nobody serves it here. Tools ask for it first, and for the one above only if they are told UNIMPLEMENTED.
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule("read", streamed=True),
}
"""Every method of our ports; one that is missing here is refused. A test holds the table to the protos."""


@dataclass(frozen=True)
class Caller:
    """A known client in one call."""

    name: str
    rule: Rule
    allowance: Allowance
    is_known: Callable[[], bool]
    """Whether its token still opens the method: a stream may last longer than a token."""

    def charge(self, message: Any) -> None:
        """The message of a unary call: one request was taken when the call came in, a batch is more."""
        self.allowance.charge(self.rule.requests(message) - 1)

    async def pace(self, message: Any) -> None:
        """A message of a stream waits until the rate admits it.

        Raises LimitExceeded once the day's are used up, Unauthenticated once the token is.
        """
        while (wait_s := self.allowance.wait_s()) > 0:
            await asyncio.sleep(wait_s)
        if not self.is_known():
            raise Unauthenticated("the token that this stream was opened with has ended")
        self.allowance.charge(self.rule.requests(message))


class Gate:
    """Lets callers in by the tokens file at `path`, which it follows. For one event loop.

    A file that turns wrong or away changes nothing but the log: who was known stays known until it is right again.
    """

    def __init__(self, path: Path, metrics: AccessMetrics, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidConfig if the file cannot be read."""
        self._path = path
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._by_digest: dict[str, Client] = {}
        self._allowances: dict[str, Allowance] = {}
        self._state = _state(path)
        self._next_look_s = monotonic_s() + _LOOK_S
        self._take_up(read_clients(path))

    def enter(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who calls `method`; one of its requests is taken. Raises Unauthenticated, NotAllowed or LimitExceeded."""
        self._follow()
        name, result = "", "unauthenticated"
        try:
            digest = _digest(metadata)
            client = self._client(digest)
            name, result = client.name, "not_allowed"
            rule = _rule(method, client)
            result = "limited"
            allowance = self._allowances[name]
            if not rule.streamed:
                allowance.take()
            result = "admitted"
        finally:
            self._metrics.calls.labels(name, result).inc()
        if rule.scope == "admin":
            log.info("client %s calls %s", name, method)
        return Caller(name, rule, allowance, partial(self._still_opens, digest, rule))

    def _client(self, digest: str) -> Client:
        client = self._by_digest.get(digest)
        # What the search by hash gives away is of the hash, whose bytes nobody can choose; the comparison that decides
        # takes the same time wherever two hashes differ.
        if client is None or not any(hmac.compare_digest(digest, own) for own in client.digests):
            raise Unauthenticated("no known token; send one as metadata, authorization: Bearer TOKEN")
        return client

    def _still_opens(self, digest: str, rule: Rule) -> bool:
        self._follow()
        client = self._by_digest.get(digest)
        return client is not None and rule.scope in client.scopes

    def _follow(self) -> None:
        now_s = self._monotonic_s()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_S
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._take_up(read_clients(self._path))
        except InvalidConfig as error:
            log.error("tokens known before stay in use: %s", error.message)

    def _take_up(self, clients: Mapping[str, Client]) -> None:
        for client in clients.values():
            self._allowances.setdefault(client.name, Allowance(client.limits)).set_limits(client.limits)
        self._by_digest = {digest: client for client in clients.values() for digest in client.digests}
        log.info("clients with a token: %s", ", ".join(clients) or "none")


def _digest(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Of the token that a call came with; empty if there is none."""
    for key, value in metadata:
        if key == AUTHORIZATION and isinstance(value, str) and value[: len(BEARER)].lower() == BEARER:
            return digest_of(value[len(BEARER) :])
    return ""


def _rule(method: str, client: Client) -> Rule:
    rule = METHODS.get(method)
    if rule is None or rule.scope not in client.scopes:
        wanted = f"it needs scope {rule.scope}" if rule else "no scope allows it"
        raise NotAllowed(f"client {client.name} may not call this method: {wanted}")
    return rule


def _state(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Who made the call that is being served; None where no tokens file asks."""


def charge(message: Any) -> None:
    """Charge the caller for the message of a unary call, as `Caller.charge`."""
    if (caller := _CALLER.get()) is not None:
        caller.charge(message)


async def pace(message: Any) -> None:
    """Let a message of a stream wait for the caller's rate, as `Caller.pace`."""
    if (caller := _CALLER.get()) is not None:
        await caller.pace(message)


class GateInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Stands before everything else that looks at a call; who is refused costs one hash and is told one line."""

    def __init__(self, gate: Gate, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._gate = gate
        self._monotonic_s = monotonic_s
        self._quiet_until_s = 0.0

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """The method's own handler, or one that refuses without reading the message."""
        if details.method != OPEN:
            try:
                _CALLER.set(self._gate.enter(details.method, details.invocation_metadata))
            except PinrecError as error:
                return self._refusing(error, details.method)
        return await continuation(details)

    def _refusing(self, error: PinrecError, method: str) -> Any:
        """For a stream of any messages, which fits every method: a unary handler would first read the message."""
        code, message = status_of(error)

        async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            if not isinstance(error, LimitExceeded):
                self.tell(code, context.peer(), method)
            await context.abort(code, message, pushback(error) if isinstance(error, LimitExceeded) else ())

        return grpc.stream_stream_rpc_method_handler(refuse)

    def tell(self, code: grpc.StatusCode, peer: str, method: str) -> None:
        """A line about a refused call, unless there was one just now."""
        now_s = self._monotonic_s()
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = now_s + QUIET_S
            log.warning("%s: %s asked for %r", code.name, peer, method[:_SHOWN_CHARS])


def pushback(error: LimitExceeded | Overloaded) -> tuple[tuple[str, str], ...]:
    """Trailing metadata for a client that is refused now: when to try again."""
    wait_ms = round(error.retry_after_s * 1_000) + 1 if error.retry_after_s <= _LONGEST_PUSHBACK_S else -1
    return ((RETRY_PUSHBACK, str(wait_ms)),)
