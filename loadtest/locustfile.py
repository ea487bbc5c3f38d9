"""A closed-loop load test of `GetCandidates`: each locust user waits for its answer before it asks again.

    python -m locust -f loadtest/locustfile.py --host localhost:8500             # then open http://localhost:8089
    python -m locust -f loadtest/locustfile.py --headless -u 16 -r 16 -t 30s --host localhost:8500

What is asked is the [traffic] of PINREC_LOAD_PROFILE (loadtest/profiles/mixed.toml by default), with the names of the
active release under PINREC_RELEASES. Prints throughput and percentiles, and ends with exit code 1 if a call failed; one
that is refused for load is counted apart, and its user waits for a moment, as it is told to. A closed loop slows down
with the server, so its percentiles flatter an overloaded one: use it for soak and throughput.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import gevent
import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import User, between, task

from loadtest.open_loop import REFUSED_PAUSE_S
from loadtest.plan import read_plan
from loadtest.traffic import Traffic
from pinrec_core.errors import PinrecError
from services.common.client import open_channel
from services.proto.candidates_pb2_grpc import CandidateServiceStub

grpc_gevent.init_gevent()  # locust has patched the sockets by now; gRPC's own loop must yield to gevent too

PROFILE = Path(__file__).parent / "profiles" / "mixed.toml"
BURST = 8
REFUSED = "GetCandidates, refused"

try:
    PLAN = read_plan(Path(os.environ.get("PINREC_LOAD_PROFILE", PROFILE))).traffic
    TRAFFIC = Traffic.of(PLAN, Path(os.environ.get("PINREC_RELEASES", "work/releases")))
except PinrecError as wrong:
    raise SystemExit(f"Error: {wrong.message}") from None


class RankingService(User):
    """One connection that asks without a pause."""

    host = "localhost:8500"
    weight = 7

    def on_start(self) -> None:
        """Open this user's own channel: one HTTP/2 connection each, as separate clients have."""
        self.channel = open_channel(self.host, [("grpc.use_local_subchannel_pool", 1)])
        self.stub = CandidateServiceStub(self.channel)
        self.rng = random.Random()

    def on_stop(self) -> None:
        """Close the channel."""
        self.channel.close()

    @task
    def get_candidates(self) -> None:
        """One request, reported with its time, size and error."""
        request = TRAFFIC.draw(self.rng)
        start = time.perf_counter()
        name, size, failure = "GetCandidates", 0, None
        try:
            size = self.stub.GetCandidates(request, timeout=PLAN.deadline_s).ByteSize()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                name = REFUSED
            else:
                failure = FailedCallError(f"{error.code().name}: {error.details()}")
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - start) * 1000,
            response_length=size,
            exception=failure,
        )
        if name == REFUSED:
            gevent.sleep(REFUSED_PAUSE_S)


class BurstyService(RankingService):
    """One connection that asks for a whole page at once, and then pauses."""

    weight = 1
    wait_time = between(0.5, 1.5)

    @task
    def get_page(self) -> None:
        """A burst of requests."""
        gevent.joinall([gevent.spawn(self.get_candidates) for _ in range(BURST)])


class FailedCallError(Exception):
    """A call that did not succeed; locust groups failures by their text."""
