"""Everything whose speed is compared, running side by side: the stack, its floors, the naive service, single stages."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks.chaos.fleet import Fleet, running
from benchmarks.chaos.parts import Part, wait_for
from benchmarks.chaos.world import World, fresh
from benchmarks.serving.alone import PATH, Alone, alone
from benchmarks.serving.empty_repository import VARIANTS, write_repository
from benchmarks.serving.recorded import outputs_of
from benchmarks.serving.workload import NAIVE_URL, NUM_CANDIDATES, RECORDED, request_of, resolved
from benchmarks.serving.world import ServingWorld
from pinrec_core.serving.contract import ENSEMBLE, STAGES
from pinrec_core.serving.reconnect import QUICK_RECONNECT
from services.cli.supervisor import Process
from services.cli.up import is_free
from services.common.probe import answers
from services.gateway.triton_client import Ensemble
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.triton.command import TritonOptions, clean_shm, command, environment
from services.triton.tools import locate

Send = Callable[[int], Awaitable[Any]]
"""Makes call number i and returns the answer."""

GATEWAY, TRITON, NOOP = "gateway", "ensemble", "no-op gRPC call"
NAIVES = {"naive service": False, "naive service, requests at once": True}
"""By name: whether it works on several requests at once."""
TIMEOUT_S = 30.0
"""Of a call: longer than any waits where nobody is refused."""
_FIRST_PORT = 28_000
_AS_BY_DEFAULT = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT", "OMP_NUM_THREADS")
"""What the naive service's user has not heard of."""


@dataclass(frozen=True)
class Subjects:
    """What runs. `sends` by name: `GATEWAY`, `TRITON`, `NOOP`, each empty ensemble, each of `NAIVES`."""

    world: ServingWorld
    fleet: Fleet
    messages: Path
    alone: Mapping[str, Alone]
    """Each stage and `PATH`, in processes of their own."""
    sends: Mapping[str, Send]
    answer_bytes: int
    """Of the gateway's answer to a request."""

    @property
    def triton_metrics(self) -> str:
        """host:port of the real Triton's counts."""
        return f"{self.fleet.stack.host}:{self.fleet.stack.triton_metrics_port}"


@contextmanager
def processes_alone(world: ServingWorld, messages: Path) -> Iterator[dict[str, Alone]]:
    """The path in one process, which records the messages, then each stage."""
    folders = (world.releases, world.batch_views, messages, world.spec.users)
    with ExitStack() as held:
        yield {what: held.enter_context(alone(what, *folders)) for what in (PATH, *(stage.name for stage in STAGES))}


@asynccontextmanager
async def subjects(world: ServingWorld, folder: Path) -> AsyncIterator[Subjects]:
    """All of them, started one after another in an empty `folder`."""
    messages = fresh(folder) / "messages"
    async with AsyncExitStack() as held:
        workers = held.enter_context(processes_alone(world, messages))
        fleet = held.enter_context(running(World(world.work / world.scale), folder / "fleet"))
        stack = fleet.stack
        gateway = gateway_send(await held.enter_async_context(channel(fleet.gateway)), world.spec.users)
        answer = (await gateway(0)).SerializeToString()
        (folder / "answer.bin").write_bytes(answer)
        noop = held.enter_context(noop_server(folder))
        empty = held.enter_context(empty_triton(world, messages, folder))
        sends = {
            GATEWAY: gateway,
            TRITON: ensemble_send(f"{stack.host}:{stack.triton_grpc_port}", ENSEMBLE.name, world, held),
            NOOP: gateway_send(await held.enter_async_context(channel(noop)), world.spec.users),
            **{variant.name: ensemble_send(empty, variant.name, world, held) for variant in VARIANTS},
        }
        for name, at_once in NAIVES.items():
            port = held.enter_context(naive_server(world, folder, at_once))
            sends[name] = await held.enter_async_context(naive_send(port, world.spec.users))
        yield Subjects(world, fleet, messages, workers, sends, len(answer))


def channel(address: str) -> grpc.aio.Channel:
    """To a server of ours."""
    return grpc.aio.insecure_channel(address, QUICK_RECONNECT)


def gateway_send(to: grpc.aio.Channel, users: int) -> Send:
    """Call i as a ranking service makes it."""
    stub = CandidateServiceStub(to)

    async def send(number: int) -> Any:
        return await stub.GetCandidates(request_of(number, users), timeout=TIMEOUT_S)

    return send


def ensemble_send(address: str, name: str, world: ServingWorld, held: AsyncExitStack) -> Send:
    """The same call as the gateway makes it."""
    ensemble, release = Ensemble(address, name=name), world.release()
    held.push_async_callback(ensemble.close)
    requests = [resolved(number, world.spec.users, release) for number in range(RECORDED)]

    async def send(number: int) -> Any:
        return await ensemble.infer(requests[number % RECORDED], TIMEOUT_S, "r")

    return send


@asynccontextmanager
async def naive_send(port: int, users: int) -> AsyncIterator[Send]:
    """Call i as a user of the naive service makes it: JSON over HTTP, on connections that stay."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def send(number: int) -> Any:
            ask = request_of(number, users)
            body = {
                "user_id": ask.user_id,
                "surface": ask.surface,
                "budget": dict(ask.budget),
                "num_candidates": ask.num_candidates,
            }
            async with session.post(f"http://127.0.0.1:{port}{NAIVE_URL}", json=body) as reply:
                reply.raise_for_status()
                return len((await reply.json())["candidates"]) == NUM_CANDIDATES

        yield send


@contextmanager
def noop_server(folder: Path) -> Iterator[str]:
    """The address of a server that answers with `answer.bin`."""
    port = free_port()
    line = [sys.executable, "-m", "benchmarks.serving.noop", str(folder / "answer.bin"), str(port)]
    process = Process("noop", line, lambda: not is_free("127.0.0.1", port))
    with started(process, folder):
        yield f"127.0.0.1:{port}"


@contextmanager
def naive_server(world: ServingWorld, folder: Path, at_once: bool) -> Iterator[int]:
    """The port of the naive service."""
    port = free_port()
    folders = ("--releases", world.releases, "--batch-views", world.batch_views, "--vectors", world.vectors)
    line = [sys.executable, "-m", "benchmarks.serving.naive", *map(str, folders), "--port", str(port)]
    line += ["--at-once" if at_once else "--in-turn"]
    own = {name: value for name, value in os.environ.items() if name not in _AS_BY_DEFAULT}
    with started(Process(f"naive-{port}", line, lambda: answers(f"http://127.0.0.1:{port}/docs"), own), folder):
        yield port


@contextmanager
def empty_triton(world: ServingWorld, messages: Path, folder: Path) -> Iterator[str]:
    """The gRPC address of a Triton with the empty ensembles."""
    repository = folder / "empty_repository"
    write_repository(repository, {stage.name: outputs_of(messages, stage.name)[0] for stage in STAGES})
    grpc_port, http_port, metrics_port = (free_port(place) for place in range(3))
    options = TritonOptions(
        world.releases,
        models=tuple(variant.name for variant in VARIANTS),
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
    )
    server = locate()
    ready = f"http://127.0.0.1:{http_port}/v2/health/ready"
    line = command(server, options, repository)
    try:
        with started(Process("empty", line, lambda: answers(ready), environment(server, options)), folder):
            yield f"127.0.0.1:{grpc_port}"
    finally:
        clean_shm(options)


@contextmanager
def started(process: Process, folder: Path) -> Iterator[Part]:
    """A process while inside; SIGTERM at the end. Raises RuntimeError with its last words if it does not start."""
    part = Part(process, folder / f"{process.name}.log")
    part.start()
    try:
        yield part
    finally:
        os.kill(part.pid, signal.SIGTERM)
        wait_for(lambda: part.code() is not None, seconds=20.0)
        part.kill()


def free_port(skip: int = 0) -> int:
    """One that nothing listens on; the `skip` before it are left to others."""
    free = (port for port in range(_FIRST_PORT, 60_000) if is_free("127.0.0.1", port))
    for _ in range(skip):
        next(free)
    return next(free)
