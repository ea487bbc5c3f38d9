"""A closed-loop load test of `GetCandidates`: each locust user waits for its answer before it asks again.

    locust -f loadtest/locustfile.py --headless -u 16 -r 16 -t 30s --host localhost:8500

Prints throughput and percentiles, and ends with exit code 1 if a call failed. What is asked for: `loadtest/traffic.py`.
A closed loop slows down with the server, so its percentiles flatter an overloaded one: use it for soak and throughput.
"""

from __future__ import annotations

import os
import random
import time

import grpc
import grpc.experimental.gevent as grpc_gevent
from locust import User, task
from traffic import Traffic

from pinrec_core.errors import PinrecError
from services.proto.candidates_pb2_grpc import CandidateServiceStub

grpc_gevent.init_gevent()  # locust has patched the sockets by now; gRPC's own loop must yield to gevent too

try:
    TRAFFIC = Traffic.from_env(os.environ)
except PinrecError as wrong:
    raise SystemExit(f"Error: {wrong.message}") from None
TIMEOUT_S = 5.0


class RankingService(User):
    """One connection that asks without a pause."""

    host = "localhost:8500"

    def on_start(self) -> None:
        """Open this user's own channel: one HTTP/2 connection each, as separate clients have."""
        self.channel = grpc.insecure_channel(self.host, options=[("grpc.use_local_subchannel_pool", 1)])
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
        size, failure = 0, None
        try:
            size = self.stub.GetCandidates(request, timeout=TIMEOUT_S).ByteSize()
        except grpc.RpcError as error:
            failure = FailedCallError(f"{error.code().name}: {error.details()}")
        self.environment.events.request.fire(
            request_type="grpc",
            name="GetCandidates",
            response_time=(time.perf_counter() - start) * 1000,
            response_length=size,
            exception=failure,
        )


class FailedCallError(Exception):
    """A call that did not succeed; locust groups failures by their text."""
