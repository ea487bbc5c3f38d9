"""A gateway in this process against a peer that speaks Triton's protocol: what tests of the gateway share."""

import asyncio
import json
import math
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pinrec_core.config import Config
from pinrec_core.errors import ReleaseNotOpen
from pinrec_core.messages import CandidateRequest
from pinrec_core.release import ReleaseFacts, ServingState, write_serving_state
from pinrec_core.release.golden import CANARY_USER_ID
from pinrec_core.schema import Vocabulary
from pinrec_core.serving.contract import ENSEMBLE, NUMPY_OF, STAGES
from pinrec_core.serving.error_words import error_text
from pinrec_core.serving.triton_io import decode_fields, to_array
from services.common.server import ServerOptions
from services.gateway.server import SERVICE, Gateway
from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.candidates_pb2_grpc import CandidateServiceStub

VOCABULARY = Vocabulary(
    positive_actions=("save", "click"),
    actions=("save", "click", "search"),
    surfaces=("home", "search"),
    search_surfaces=("search",),
)


def write_release(root, number, **serve):
    folder = root / str(number)
    folder.mkdir(parents=True)
    manifest = {"format": 1, "release": number, **vars(ReleaseFacts("e", "e", 1_700_000_000_000, "toy")), "files": {}}
    config = Config().to_dict()
    config["serve"].update(serve)
    for name, values in (("manifest", manifest), ("config", config), ("vocabulary", VOCABULARY.to_dict())):
        (folder / f"{name}.json").write_text(json.dumps(values))


class TritonPeer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers each request with as many items as its counts ask for: ids 100, 101, ...; the last one is a fill.

    With `error` (a code and its text) it fails instead, `failures` times.
    """

    def __init__(self):
        self.requests: list[CandidateRequest] = []
        self.changed = {}
        self.open = {1}
        self.error = None
        self.failures = math.inf
        self.release_me = asyncio.Event()
        self.release_me.set()

    async def ModelInfer(self, request, context):  # noqa: N802
        arrays = {
            tensor.name: np.frombuffer(raw, NUMPY_OF[tensor.datatype]).reshape(tensor.shape)[0]
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        asked = CandidateRequest(**decode_fields(ENSEMBLE.inputs, arrays))
        if asked.user_id != CANARY_USER_ID:
            self.requests.append(asked)
            await self.release_me.wait()
        if asked.release not in self.open:
            error = error_text(ReleaseNotOpen(asked.release, tuple(self.open)))
            await context.abort(grpc.StatusCode.INTERNAL, f"in ensemble 'pinrec', {error}")
        if self.error and self.failures > 0:
            self.failures -= 1
            await context.abort(*self.error)
        return self._answer(asked)

    def _answer(self, asked):
        outcomes = np.repeat(np.arange(len(asked.counts)), asked.counts)
        n = len(outcomes)
        values = {
            "candidate_ids": np.arange(100, 100 + n),
            "scores": np.append(np.linspace(0.9, 0.5, n - 1), 0.0),
            "candidate_outcomes": outcomes,
            "source": np.append(np.zeros(n - 1), -1),
            "step": np.array([2]),
            "target_offset": np.array([3]),
            "num_generated": 12,
            "num_kept": 4,
            "history_length": 7,
            "realtime_events": 2,
            "status": 0,
            **{stage.release_tensor: asked.release for stage in STAGES},
            **{stage.elapsed_tensor: 1_500 for stage in STAGES},
            **self.changed,
        }
        reply = service_pb2.ModelInferResponse(model_name="pinrec")
        for spec in ENSEMBLE.outputs:
            array = to_array(spec, values[spec.name])[None]
            reply.outputs.add(name=spec.name, datatype=spec.dtype, shape=array.shape)
            reply.raw_output_contents.append(array.tobytes())
        return reply


class Stack:
    """A running gateway, its Triton peer and a client."""

    def __init__(self, root, peer, triton, gateway, registry, channel):
        self.root, self.peer, self.triton, self.gateway, self.registry = root, peer, triton, gateway, registry
        self.client = CandidateServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def count(self, name, **labels):
        return self.registry.get_sample_value(f"pinrec_gateway_{name}", labels) or 0.0

    async def is_serving(self, service=SERVICE):
        reply = await self.health.Check(health_pb2.HealthCheckRequest(service=service))
        return reply.status == health_pb2.HealthCheckResponse.SERVING


@asynccontextmanager
async def running(root, canary_s=3600.0, popular=None, fallback=True, port=0, linger_s=0.0, group=None, **serve):
    """`popular`: lists of the release, int64 [3, 2, P]; without them there is nothing to fall back to."""
    # A deadline that a busy machine keeps, unless a test is about deadlines.
    write_release(root, 1, **{"default_deadline_ms": 30_000, **serve})
    if popular is not None:
        (root / "1" / "popular").mkdir()
        np.save(root / "1" / "popular" / "ids.npy", np.array(popular, dtype=np.int64))
    write_serving_state(root, ServingState(active=1, open=(1,)))
    peer, triton = TritonPeer(), grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(peer, triton)
    address = f"localhost:{triton.add_insecure_port('localhost:0')}"
    await triton.start()
    registry = CollectorRegistry()
    options = ServerOptions(f"localhost:{port}", drain_s=5.0, linger_s=linger_s)
    gateway = Gateway(root, address, options, canary_s, registry, fallback, group)
    await gateway.server.start()
    try:
        async with grpc.aio.insecure_channel(f"localhost:{gateway.server.port}") as channel:
            yield Stack(root, peer, address, gateway, registry, channel)
    finally:  # also after a failed assertion: servers left running would fail the tests that come next
        peer.release_me.set()
        await gateway.server.server.stop(0)
        await gateway.ensemble.close()
        await triton.stop(0)


def ask(**changes):
    fields = {"user_id": 5, "surface": "home", "budget": {"save": 0.7, "click": 0.3}, "num_candidates": 10}
    return GetCandidatesRequest(**{**fields, **changes})


async def failure_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()
