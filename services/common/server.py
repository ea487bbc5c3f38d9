"""What the gateway and the signal service share: a gRPC server with health, reflection, metrics, errors and drain."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry, start_http_server

from pinrec_core.errors import InvalidConfig, InvalidRequest, LimitExceeded, Overloaded
from services.common.auth import Gate, GateInterceptor, charge, pace, pushback
from services.common.errors import status_of
from services.common.logs import FailedCalls, log_format_option
from services.common.metrics import AccessMetrics, RpcMetrics
from services.common.tls import server_credentials
from services.common.tracing import NO_TRACING, Tracing

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message sent: 256 answers of 1,000 candidates with their reasons stay below it."""

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # What one connection can hold of us: headers of a call, calls at once, and the time it may take to say hello.
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.absolute_max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 1_024),
    ("grpc.server_handshake_timeout_ms", 10_000),
]

LIVE = "live"
"""Name whose health is SERVING for as long as the event loop turns, ready or not: what a liveness probe asks."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerOptions:
    """How a process listens and stops.

    `listen` "host:port", port 0 = any free one; `metrics_port` 0 = none, its host that of `listen` unless
    `metrics_host` names another. On SIGTERM health turns NOT_SERVING, calls are still taken for `linger_s` seconds (so
    that load balancers notice), then those in flight have `drain_s` seconds. With a certificate the port speaks TLS,
    with `tls_client_ca` to clients with a certificate of their own, with `tokens` to those that the file knows.
    `shared_port`: other processes listen on the same port, and the kernel gives each connection to one of them.
    """

    listen: str
    metrics_port: int = 0
    metrics_host: str = ""
    reflection: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: Path | None = None
    linger_s: float = 0.0
    drain_s: float = 10.0
    log_format: str = "text"
    shared_port: bool = False


Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(listen: str, metrics_port: int) -> Callable[[Command], Command]:
    """Click options of a process with a port, with its defaults; they arrive as the fields of `ServerOptions`."""
    options = [
        click.option("--listen", default=listen, show_default=True, metavar="HOST:PORT", help="Where to serve gRPC."),
        click.option(
            "--metrics-port",
            default=metrics_port,
            show_default=True,
            help="Port of Prometheus metrics; 0 = none.",
        ),
        click.option("--metrics-host", default="", metavar="HOST", help="Its address.  [default: that of --listen]"),
        click.option("--reflection/--no-reflection", default=False, show_default=True, help="Serve gRPC reflection."),
        _file("--tls-cert", "PINREC_TLS_CERT", "Certificate chain (PEM): the port speaks TLS. Followed when renewed."),
        _file("--tls-key", "PINREC_TLS_KEY", "Its key (PEM)."),
        _file("--tls-client-ca", "PINREC_TLS_CLIENT_CA", "Only clients with a certificate of this CA (PEM) are heard."),
        _file("--tokens", "PINREC_TOKENS", "Only clients with a token of this file are answered (`pinrec token`)."),
        click.option(
            "--linger",
            "linger_s",
            default=0.0,
            show_default=True,
            help="Seconds that calls are taken after NOT_SERVING.",
        ),
        click.option("--drain", "drain_s", default=10.0, show_default=True, help="Seconds for calls in flight."),
        log_format_option,
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _file(option: str, variable: str, text: str) -> Callable[[Command], Command]:
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(option, type=kind, envvar=variable, show_envvar=True, help=text)


class GrpcServer:
    """A grpc.aio server: add services to `.server`, then `start`, `set_serving`, and `run_until_stopped` or `drain`.

    Starts as NOT_SERVING for every service and for the server as a whole (the empty name).
    """

    def __init__(
        self,
        services: Sequence[str],
        options: ServerOptions,
        registry: CollectorRegistry,
        tracing: Tracing = NO_TRACING,
        max_request_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        """Raises InvalidConfig for files of certificates or tokens that cannot be used."""
        self.options = options
        self.tracing = tracing
        self.port = 0
        self._registry = registry
        self._services = tuple(services)
        self._health = health.aio.HealthServicer()
        self._credentials = server_credentials(options.tls_cert, options.tls_key, options.tls_client_ca)
        self.edge = EdgeInterceptor(RpcMetrics(registry), self.tracing)
        self.server = grpc.aio.server(
            interceptors=[*_gates(options, registry), self.edge],
            options=[
                *_CHANNEL_OPTIONS,
                ("grpc.max_receive_message_length", max_request_bytes),
                # Without SO_REUSEPORT a second process on the port fails at once instead of sharing its connections.
                ("grpc.so_reuseport", int(options.shared_port)),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        if options.reflection:
            reflection.enable_server_reflection((*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self.server)

    async def start(self) -> None:
        """Listen on both ports, as NOT_SERVING. Raises InvalidConfig if one is taken."""
        await self.stand_by()
        await self.listen()

    async def stand_by(self) -> None:
        """All but taking connections: health is NOT_SERVING, metrics are served. Raises InvalidConfig."""
        await self.set_serving(False)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        if self.options.metrics_port:
            self._serve_metrics(self.options.metrics_port)

    async def listen(self) -> None:
        """Take connections. Raises InvalidConfig if the port is taken."""
        try:
            self.port = self._add_port(self.options.listen)
        except RuntimeError as error:
            raise InvalidConfig(f"--listen has value {self.options.listen!r}; allowed: a free port") from error
        await self.server.start()
        log.info("listening on port %d, metrics on %d", self.port, self.options.metrics_port)

    def _add_port(self, address: str) -> int:
        if self._credentials is None:
            return int(self.server.add_insecure_port(address))
        return int(self.server.add_secure_port(address, self._credentials))

    def _serve_metrics(self, port: int) -> None:
        host = self.options.metrics_host or self.options.listen.rpartition(":")[0].strip("[]")
        try:
            start_http_server(port, addr=host, registry=self._registry)
        except OSError as error:
            value = f"--metrics-port has value {port} on host {host!r}"
            raise InvalidConfig(f"{value}; allowed: a free port, or 0 for none") from error

    async def set_serving(self, serving: bool, *names: str) -> None:
        """Answer of the health service from now on, of all services if none is named; ignored once draining."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in names or (health.OVERALL_HEALTH, *self._services):
            await self._health.set(name, status)

    async def run_until_stopped(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain."""
        gc.collect()
        gc.freeze()  # what is there by now stays: no collection has to walk through it while calls wait
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await stop.wait()
        await self.drain()

    async def drain(self) -> None:
        """NOT_SERVING, linger, refuse new calls, wait for those in flight, stop."""
        log.info("draining")
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self.options.linger_s)
        await self.server.stop(self.options.drain_s)
        await asyncio.to_thread(self.tracing.close)
        log.info("stopped")


def _gates(options: ServerOptions, registry: CollectorRegistry) -> list[grpc.aio.ServerInterceptor]:
    """What stands before the edge: the gate, where a tokens file says who may come in."""
    if options.tokens is None:
        return []
    if options.tls_cert is None:
        raise InvalidConfig("--tokens is set without --tls-cert: a token must not travel in the clear")
    return [GateInterceptor(Gate(options.tokens, AccessMetrics(registry)))]


Handler = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]
StreamHandler = Callable[[AsyncIterator[Any], grpc.aio.ServicerContext], AsyncGenerator[Any, None]]
Read = Callable[[bytes], Any]


class EdgeInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The edge of a process: each call is counted and traced, and what it raises becomes a status by the one table."""

    def __init__(self, metrics: RpcMetrics, tracing: Tracing = NO_TRACING) -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._failed = FailedCalls()
        self._known: dict[str, Any] = {}
        self.turn_away: Callable[[str], Overloaded | None] = lambda _: None
        """Full name of a method -> the refusal of a call of it that has just come in, None to let it in.

        Of one method; the same refusal again costs less than another.
        """
        self._refusal: Overloaded | None = None
        self._refuser: Any = None

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap unary calls and two-way streams that are generators; health watches and unknown methods pass."""
        if (refusal := self.turn_away(details.method)) is not None:
            return self._refusing(refusal, details.method)
        known = self._known.get(details.method)
        if known is None:
            known = self._wrapped(await continuation(details), details.method)
            if known is not None:  # names that nobody serves are not kept
                self._known[details.method] = known
        return known

    def _refusing(self, refusal: Overloaded, full_method: str) -> Any:
        """Counts and refuses, as the guard would, but untraced and without waiting for the message to be read."""
        if refusal is self._refusal:
            return self._refuser
        code, message = status_of(refusal)
        method = full_method.rpartition("/")[2]
        seconds = self._metrics.seconds.labels(method, code.name)
        trailers = pushback(refusal)

        async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            seconds.observe(0.0)
            self._failed.ended(method, code, message, 0.0)
            context.set_trailing_metadata(trailers)
            context.set_code(code)  # cheaper than an abort, which raises
            context.set_details(message)

        # A unary handler would read the message.
        self._refusal, self._refuser = refusal, grpc.stream_stream_rpc_method_handler(refuse)
        return self._refuser

    def _wrapped(self, handler: Any, method: str) -> Any:
        # Without a deserializer the bytes come here: what cannot be read is answered by the one table too.
        if handler is not None and handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._guard(handler.unary_unary, method, handler.request_deserializer or bytes),
                response_serializer=handler.response_serializer,
            )
        if handler is not None and inspect.isasyncgenfunction(handler.stream_stream):
            return grpc.stream_stream_rpc_method_handler(
                self._guard_stream(handler.stream_stream, method, handler.request_deserializer or bytes),
                response_serializer=handler.response_serializer,
            )
        return handler

    def _guard(self, call: Handler, full_method: str, read: Read) -> Handler:
        method = full_method.rpartition("/")[2]

        async def guarded(encoded: bytes, context: grpc.aio.ServicerContext) -> Any:
            start = time.perf_counter()
            with self._tracing.serve(full_method, context.invocation_metadata()) as span:

                def ended(code: grpc.StatusCode, message: str) -> None:
                    elapsed_s = time.perf_counter() - start
                    self._metrics.seconds.labels(method, code.name).observe(elapsed_s)
                    self._failed.ended(method, code, message, elapsed_s)
                    span.ended(code)

                add_trailers(context, *span.trailers)
                async with _edge(context, ended):
                    message = _read(read, encoded)
                    charge(message)
                    return await call(message, context)

        return guarded

    def _guard_stream(self, call: StreamHandler, full_method: str, read: Read) -> StreamHandler:
        method = full_method.rpartition("/")[2]

        async def guarded(
            encoded: AsyncIterator[bytes], context: grpc.aio.ServicerContext
        ) -> AsyncGenerator[Any, None]:
            def ended(code: grpc.StatusCode, _: str) -> None:
                self._metrics.streams.labels(method, code.name).inc()

            async with _edge(context, ended), aclosing(call(_read_each(read, encoded), context)) as answers:
                async for answer in answers:
                    yield answer

        return guarded


@asynccontextmanager
async def _edge(
    context: grpc.aio.ServicerContext, ended: Callable[[grpc.StatusCode, str], None]
) -> AsyncIterator[None]:
    """One call: what it raises reaches the client by the table, and `ended` is told its status code and message."""
    code, message = grpc.StatusCode.CANCELLED, ""
    try:
        yield
        code = grpc.StatusCode.OK
    except grpc.aio.AbortError:
        code, message = context.code(), context.details()
        raise
    except Exception as error:  # the edge: nothing that was raised may reach the client as it is
        code, message = status_of(error)
        add_trailers(context, *_trailers(error))
        await _abort(context, code, message)
    finally:
        ended(code, message)


def _read(read: Read, encoded: bytes) -> Any:
    try:
        return read(encoded)
    except DecodeError as error:
        raise InvalidRequest("message", f"{len(encoded)} bytes", "the request of this method, encoded") from error


async def _read_each(read: Read, encoded: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for one in encoded:
        message = _read(read, one)
        await pace(message)
        yield message


async def _abort(context: grpc.aio.ServicerContext, code: grpc.StatusCode, message: str) -> None:
    """Tell the client; if it is gone (its deadline passed, it hung up), end as cancelled, which is not logged."""
    try:
        await context.abort(code, message)
    except grpc.aio.InternalError as error:
        raise asyncio.CancelledError from error


def add_trailers(context: grpc.aio.ServicerContext, *pairs: tuple[str, str]) -> None:
    """Trailing metadata beside what is set already, which gRPC would replace."""
    if pairs:
        context.set_trailing_metadata((*context.trailing_metadata(), *pairs))


def _trailers(error: BaseException) -> tuple[tuple[str, str], ...]:
    return pushback(error) if isinstance(error, LimitExceeded | Overloaded) else ()
