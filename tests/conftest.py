"""A small world, a briefly trained model and its releases on disk, and the whole stack running on them.

Everything is made once a session and only for the tests that ask for it. Tests of the running stack append events of
users of their own (`live.new_user`), so that none meets another's.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from pinrec_core.release import Release, ServingState, open_release, write_serving_state
from pinrec_core.schema import ITEM_TYPE_NAMES
from pinrec_core.signals.events import Event
from pinrec_core.signals.realtime import MemoryHistoryStore
from services.cli.up import Stack, serves
from services.proto import signals_pb2
from services.proto.candidates_pb2_grpc import CandidateServiceStub
from services.proto.signals_pb2_grpc import SignalServiceStub
from services.triton.tools import locate
from tests.ports import free_port, free_ports
from tests.spans import Received, otlp_receiver

if TYPE_CHECKING:  # torch and faiss are imported only where a fixture needs them: most tests start without
    from pinrec_core.config import Config
    from pinrec_core.data.dataset import Dataset
    from pinrec_core.recommend import Stages

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ("share", "save", "comment", "click")
OVERRIDES = {
    "data.outcomes": OUTCOMES,
    "train.max_steps": 120,
    "generate.offsets_per_step": 4,
    "generate.compression_threshold": 0.97,  # a small model's embeddings are all alike; some should stay apart
    "serve.default_deadline_ms": 30_000,  # a test machine may be busy with other things
    "serve.golden_p99_ms": 30_000,
}
FLAT, IVF_HNSW = 1, 2
"""Releases of the trained model; 1 is active, both are open."""


@pytest.fixture(scope="session")
def requires_program() -> Callable[[str], None]:
    """Skips a test whose program is missing here; fails it where PINREC_TEST_REQUIRES=all says that none may be."""

    def check(name: str) -> None:
        if shutil.which(name) is None:
            missing = pytest.fail if os.environ.get("PINREC_TEST_REQUIRES") == "all" else pytest.skip
            missing(f"{name} is not on PATH")

    return check


@pytest.fixture(scope="session")
def start_redis(requires_program, tmp_path_factory) -> Iterator[Callable[..., str]]:
    """Settings -> the URL of a new redis-server on a free port; without any it syncs its log before each answer."""
    from redis import ConnectionError, Redis

    with ExitStack() as running:

        def start(**settings: str) -> str:
            requires_program("redis-server")
            port = free_port("localhost")
            settings = {"appendonly": "yes", "appendfsync": "always", "save": "", **settings}
            words = [word for name, value in settings.items() for word in (f"--{name}", value)]
            command = ["redis-server", "--port", str(port), "--dir", str(tmp_path_factory.mktemp("redis")), *words]
            server = running.enter_context(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            running.callback(server.terminate)
            with Redis(port=port) as client:

                def answers() -> bool:
                    try:
                        return client.ping()
                    except ConnectionError:
                        return False

                assert eventually(answers)
            return f"redis://localhost:{port}/0"

        yield start


@dataclass(frozen=True)
class Trained:
    """What the session's stack serves."""

    dataset: Dataset
    config: Config
    releases: Path
    batch_view: Path

    def release(self, number: int) -> Release:
        return open_release(self.releases, number)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """200 users, 300 items, three surfaces, four outcomes; one model, briefly trained, under two indexes."""
    import torch

    from pinrec_core.batch_job.job import build_batch_view
    from pinrec_core.config import load_config
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.data.synthetic import SyntheticSpec, SyntheticWorld
    from pinrec_core.eval.evaluate import evaluate
    from pinrec_core.golden import add_golden
    from pinrec_core.model.pinrec import PinRec
    from pinrec_core.train.checkpoint import load_checkpoint
    from pinrec_core.train.export import export
    from pinrec_core.train.loop import train

    torch.set_num_threads(1)  # as the stack's stages: sums in the same order
    root = tmp_path_factory.mktemp("trained")
    SyntheticWorld(SyntheticSpec(users=200, items=300, events=8_000)).write(root / "data")
    refine_actions(root / "data" / "events.parquet")
    config = load_config(ROOT / "configs" / "tiny.toml", OVERRIDES)
    dataset = open_dataset(root / "data", config)
    validation = dataset.split(config).validation
    train(config, dataset, root / "run", lambda model: evaluate(model, dataset, validation), progress=False)
    model, config, fitted = load_checkpoint(root / "run")
    golden = partial(add_golden, titles=dataset.titles, request_time_ms=dataset.watermark_ms)
    assert export(model, dataset, root / "releases", add_golden=golden) == FLAT
    probed = replace(config, retrieve=replace(config.retrieve, kind="ivf_hnsw"))
    twin = PinRec(probed, fitted.vocabulary, dataset.items.content.shape[1])
    twin.load_state_dict(model.state_dict())
    assert export(twin, dataset, root / "releases", add_golden=golden) == IVF_HNSW
    write_serving_state(root / "releases", ServingState(FLAT, (FLAT, IVF_HNSW)))
    build_batch_view(root / "data", root / "view")
    return Trained(dataset, config, root / "releases", root / "view")


def refine_actions(path: Path) -> None:
    """Make rarer actions of every fifth save (share) and every fourth click (comment): budgets of four outcomes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    events = pq.read_table(path)
    place = np.arange(len(events))
    action = events["action"].to_numpy(zero_copy_only=False)
    action = np.where((action == "save") & (place % 5 == 0), "share", action)
    action = np.where((action == "click") & (place % 4 == 0), "comment", action)
    assert set(action) == {*OUTCOMES, "search"}
    column = pa.array(action, pa.string())
    pq.write_table(events.set_column(events.schema.get_field_index("action"), "action", column), path)


@dataclass(frozen=True)
class Live:
    """A running stack, stubs on its ports, and the same history store in this process.

    It traces the calls whose caller samples, and tells in JSON lines, each behind its process's name.
    """

    trained: Trained
    stack: Stack
    candidates: CandidateServiceStub
    signals: SignalServiceStub
    channel: grpc.Channel
    received: Received
    log: Path
    mirror: MemoryHistoryStore = field(default_factory=MemoryHistoryStore)
    _new_users: Iterator[int] = field(default_factory=lambda: count(1_000_000))
    _log_users: Iterator[int] = field(default_factory=lambda: count(101))

    @property
    def gateway(self) -> str:
        return f"{self.stack.host}:{self.stack.gateway_port}"

    @property
    def triton(self) -> str:
        return f"{self.stack.host}:{self.stack.triton_grpc_port}"

    def new_user(self) -> int:
        """A user of whom nothing is known."""
        return next(self._new_users)

    def log_user(self) -> int:
        """A user of the log to whom no other test appends; users up to 100 keep their logged history."""
        return next(self._log_users)

    def append(self, events: Sequence[Event]) -> None:
        """Append to the signal service and to the mirror."""
        assert append_events(self.signals, events) == len(events)
        self.mirror.append(events)

    def stages(self, number: int) -> Stages:
        """A release opened in this process, over the same events."""
        from pinrec_core.recommend import Stages

        return Stages.open(self.trained.release(number), self.trained.batch_view, self.mirror)


def append_events(signals: SignalServiceStub, events: Sequence[Event]) -> int:
    """How many events the signal service acknowledged. Raises grpc.RpcError."""
    rows = [signals_pb2.Event(**{**e._asdict(), "item_type": ITEM_TYPE_NAMES[e.item_type]}) for e in events]
    return signals.AppendEvents(signals_pb2.AppendEventsRequest(events=rows), timeout=30).acknowledged


@pytest.fixture(scope="session")
def received() -> Iterator[Received]:
    """Where the spans of the live stack go."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def live(trained, on_free_ports, received, tmp_path_factory) -> Iterator[Live]:
    """`pinrec up` as its users run it. At the end SIGTERM: exit code 0 and none of its processes left."""
    folder = tmp_path_factory.mktemp("live")
    stack = on_free_ports(trained.releases, folder / "signals", trained.batch_view)
    log = folder / "up.log"
    told = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": received.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # milliseconds until spans are sent, instead of 5 s
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "PINREC_TRITON_TRACES": "1",  # which its server does not survive under load: tests that trace ask one at a time
        "PINREC_LOG_FORMAT": "json",
    }
    with log.open("w") as file:
        up = subprocess.Popen(up_command(stack), env={**quiet_environment(), **told}, stdout=file, stderr=file)
    try:
        assert eventually(lambda: up.poll() is not None or serves(f"{stack.host}:{stack.gateway_port}"))
        assert up.poll() is None, log.read_text()[-5_000:]
        with ExitStack() as channels:
            gateway, signals = (
                channels.enter_context(grpc.insecure_channel(f"{stack.host}:{port}"))
                for port in (stack.gateway_port, stack.signals_port)
            )
            stubs = CandidateServiceStub(gateway), SignalServiceStub(signals)
            yield Live(trained, stack, *stubs, gateway, received, log)
        started = descendants(up.pid)
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=60) == 0, log.read_text()[-5_000:]
        assert len(started) >= 4 + 4, "signals, items, Triton and its four stages, gateway"
        assert not [pid for pid in started if is_alive(pid)]
        assert "Traceback" not in log.read_text(), "whatever the tests asked for"
    finally:
        up.terminate()
        up.wait()


def up_command(stack: Stack) -> list[str]:
    """The command line of `pinrec up`."""
    ports = [word for name, port in stack.ports().items() for word in ("--" + name.replace("_", "-"), str(port))]
    folders = ["--releases", stack.releases, "--signals-data", stack.signals_data, "--batch-view", stack.batch_view]
    return [sys.executable, "-m", "services.cli.main", "up", *map(str, folders), *ports]


@pytest.fixture(scope="session")
def on_free_ports() -> Callable[[Path, Path, Path], Stack]:
    """Folders of releases, appended events and batch view -> a stack. Raises TritonMissing without a Triton server."""

    def made(releases: Path, signals_data: Path, batch_view: Path) -> Stack:
        locate()
        stack = Stack(releases, signals_data, batch_view)
        return replace(stack, **dict(zip(stack.ports(), free_ports(len(stack.ports()), stack.host), strict=True)))

    return made


def quiet_environment() -> dict[str, str]:
    """One thread a stage, and each line in the log when it is printed."""
    return {**os.environ, "PINREC_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def eventually(condition: Callable[[], bool], tries: int = 1_200) -> bool:
    """Poll for two minutes: the test's own time limit, not a speed that is asserted."""
    return any(condition() or time.sleep(0.1) for _ in range(tries))


def descendants(pid: int) -> list[int]:
    """Every living process under `pid`."""
    parents = {one: parent_of(one) for one in map(int, filter(str.isdigit, os.listdir("/proc")))}
    found, waiting = [], [pid]
    while waiting:
        children = [child for child, parent in parents.items() if parent == waiting[0]]
        found += children
        waiting = waiting[1:] + children
    return found


def parent_of(pid: int) -> int:
    """0 if there is no such process."""
    return int(_stat(pid)[1])


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    return _stat(pid)[0] != "Z"


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ["Z", "0"]
