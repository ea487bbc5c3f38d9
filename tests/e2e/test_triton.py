"""The model repository in the real tritonserver: the ensemble, two releases, remote stages, and every way to fail."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from pinrec_core.errors import DeadlineExceeded, InvalidRelease, PinrecError, ReleaseNotOpen, Unavailable
from pinrec_core.messages import CandidateRequest, Status
from pinrec_core.recommend import Stages, recommend
from pinrec_core.release import ServingState, open_release, write_serving_state
from pinrec_core.serving.contract import ENSEMBLE, STAGES
from pinrec_core.serving.error_words import error_from_text
from pinrec_core.serving.triton_io import decode_fields, encode_fields
from services.cli.supervisor import Process, Supervisor
from services.cli.up import Stack, answers, processes
from services.triton.command import SHM_FOLDER, TritonOptions, command, environment, shm_prefix
from services.triton.tools import locate
from tests.ports import free_port, free_ports

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

TIME_MS = 1_900_000_000_000
PATIENT_MS = 60_000


def triton_process(name: str, **options) -> tuple[Process, TritonOptions]:
    grpc_port, http_port, metrics_port = free_ports(3)
    chosen = TritonOptions(**options, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)
    server = locate()
    urls = [f"http://127.0.0.1:{http_port}/v2/models/{model}/ready" for model in chosen.models]
    process = Process(
        name,
        command(server, chosen),
        lambda: all(map(answers, urls)),
        environment(server, chosen, {**os.environ, "PINREC_THREADS": "1"}),
    )
    return process, chosen


@pytest.fixture(scope="module")
def signals(world, tmp_path_factory) -> Iterator[str]:
    """The signal service's address."""
    grpc_port, metrics_port = free_ports(2)
    stack = Stack(
        world.releases,
        tmp_path_factory.mktemp("signals"),
        world.batch_view,
        signals_port=grpc_port,
        signals_metrics_port=metrics_port,
    )
    with Supervisor(processes(stack)[:1], print):
        yield f"127.0.0.1:{grpc_port}"


@pytest.fixture(scope="module")
def stack(world, signals) -> Iterator[SimpleNamespace]:
    """A Triton with every stage, its client and the folder of releases."""
    process, options = triton_process("triton", releases=world.releases, signals=signals)
    with Supervisor([process], print), triton.InferenceServerClient(f"127.0.0.1:{options.grpc_port}") as client:
        yield SimpleNamespace(client=client, options=options, releases=world.releases)
    assert not list(SHM_FOLDER.glob(shm_prefix(options) + "*")), "a clean stop leaves no shared memory"


@pytest.fixture(scope="module")
def in_process(world) -> Stages:
    return Stages.open(open_release(world.releases, 1), world.batch_view)


def request_of(user_id: int, **changes) -> CandidateRequest:
    base = CandidateRequest(
        user_id=user_id,
        surface=1,
        counts=np.array([7, 3], np.int32),
        search_query="",
        exclude_item_ids=np.empty(0, np.int64),
        include_seen=False,
        request_time_ms=TIME_MS,
        release=1,
        remaining_ms=PATIENT_MS,
    )
    return replace(base, **changes)


def ask(client, request: CandidateRequest) -> dict:
    """Outputs of the ensemble as Python values. Raises what a stage raised."""
    arrays = encode_fields(ENSEMBLE.inputs, request)
    inputs = []
    for spec in ENSEMBLE.inputs:
        array = arrays[spec.name][None]
        inputs.append(triton.InferInput(spec.name, list(array.shape), spec.dtype).set_data_from_numpy(array))
    try:
        result = client.infer(ENSEMBLE.name, inputs, client_timeout=120)
    except InferenceServerException as error:
        raise error_from_text(str(error.message()), str(error.status())) from error
    return decode_fields(ENSEMBLE.outputs, {spec.name: result.as_numpy(spec.name)[0] for spec in ENSEMBLE.outputs})


def ask_all(client, requests: list[CandidateRequest]) -> list[dict | PinrecError]:
    """All at once, so that Triton batches them."""

    def one(request: CandidateRequest) -> dict | PinrecError:
        try:
            return ask(client, request)
        except PinrecError as error:
            return error

    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(one, requests))


REQUESTS = {
    "history": request_of(1),
    "other user, all of one outcome": request_of(2, counts=np.array([0, 12], np.int32)),
    "cold start": request_of(-(2**62)),
    "seen items too": request_of(3, include_seen=True),
    "excluded items": request_of(3, exclude_item_ids=np.arange(9_000_000_000, 9_000_000_150, dtype=np.int64)),
    "search query": request_of(4, surface=3, search_query="crème brûlée"),
    "nothing asked": request_of(5, counts=np.zeros(2, np.int32)),
    "more than the corpus": request_of(6, counts=np.array([400, 100], np.int32)),
}


def assert_same_answer(answer: dict, request: CandidateRequest, stages: Stages) -> None:
    (expected,) = recommend([request], stages)
    for name in ("candidate_ids", "candidate_outcomes", "source"):
        np.testing.assert_array_equal(answer[name], getattr(expected.candidates, name), err_msg=name)
    np.testing.assert_allclose(answer["scores"], expected.candidates.scores, atol=1e-5)
    for name in ("step", "target_offset"):
        np.testing.assert_array_equal(answer[name], getattr(expected.generated, name), err_msg=name)
    for name in ("num_generated", "num_kept"):
        assert answer[name] == getattr(expected.generated, name), name
    for name in ("history_length", "realtime_events", "status"):
        assert answer[name] == getattr(expected.signals, name), name


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_ensemble_answers_what_the_path_in_one_process_answers(stack, in_process, request_):
    answer = ask(stack.client, request_)
    assert_same_answer(answer, request_, in_process)
    assert [answer[stage.release_tensor] for stage in STAGES] == [1, 1, 1, 1]
    assert all(answer[stage.elapsed_tensor] > 0 for stage in STAGES)


def test_requests_of_one_batch_do_not_disturb_each_other(stack, in_process):
    many = list(REQUESTS.values()) * 8
    found = ask_all(stack.client, many)
    for answer, request in zip(found, many, strict=True):
        (expected,) = recommend([request], in_process)
        ids = set(expected.candidates.candidate_ids.tolist())
        assert len(ids & set(answer["candidate_ids"].tolist())) >= 0.99 * len(ids)


def test_bad_requests_among_good_ones_fail_alone(stack):
    bad = {
        "unknown release": (request_of(1, release=9), ReleaseNotOpen),
        "expired": (request_of(1, remaining_ms=0), DeadlineExceeded),
        "counts of another vocabulary": (request_of(1, counts=np.ones(5, np.int32)), PinrecError),
    }
    requests = [request_of(user) for user in range(8)]
    for place, (request, _) in zip((1, 4, 6), bad.values(), strict=True):
        requests.insert(place, request)
    for _ in range(3):  # how Triton cuts batches differs from time to time
        found = ask_all(stack.client, requests)
        errors = [answer for answer in found if isinstance(answer, PinrecError)]
        assert [type(error) for error in errors] == [expected for _, expected in bad.values()]
        assert not any("/" in error.message or "Traceback" in error.message for error in errors)
        assert sum(isinstance(answer, dict) for answer in found) == 8
    assert errors[0].message == "release 9 is not open; open: [1]"


def test_admin_interfaces_are_closed(stack):
    with pytest.raises(InferenceServerException, match="restricted"):
        stack.client.unload_model("retrieve")
    assert stack.client.is_model_ready("pinrec")


@contextmanager
def serving(releases: Path, active: int, *opened: int) -> Iterator[None]:
    """serving.json for a while, then release 1 alone again."""
    write_serving_state(releases, ServingState(active, opened))
    try:
        yield
    finally:
        write_serving_state(releases, ServingState(1, (1,)))


def until_open(client, request: CandidateRequest) -> dict:
    for _ in range(600):
        try:
            return ask(client, request)
        except ReleaseNotOpen:
            time.sleep(0.1)
    raise AssertionError(f"release {request.release} was never opened")


def test_a_second_release_opens_beside_the_first(stack, world):
    second = Stages.open(open_release(world.releases, 2), world.batch_view)
    with serving(world.releases, 2, 1, 2):
        answer = until_open(stack.client, request_of(1, release=2))
        assert [answer[stage.release_tensor] for stage in STAGES] == [2, 2, 2, 2]
        assert_same_answer(answer, request_of(1, release=2), second)
        mixed = ask_all(stack.client, [request_of(1, release=1 + place % 2) for place in range(12)])
        for place, one in enumerate(mixed):
            assert [one[stage.release_tensor] for stage in STAGES] == [1 + place % 2] * 4
    assert until_open(stack.client, request_of(1))["generate_release"] == 1
    with pytest.raises(ReleaseNotOpen, match=r"release 2 is not open; open: \[1\]"):
        ask(stack.client, request_of(1, release=2))


def test_a_broken_release_says_what_is_wrong_and_the_other_is_served(stack, world):
    with serving(world.releases, 1, 1, 3):
        with pytest.raises(InvalidRelease, match=r"file decoder\.safetensors does not match its sha256"):
            until_open(stack.client, request_of(1, release=3))
        assert ask(stack.client, request_of(1))["retrieve_release"] == 1


def test_remote_stages_answer_like_local_ones_and_their_loss_is_named(world, signals, in_process):
    memory, memory_options = triton_process("memory", releases=world.releases, models=("embed_items", "retrieve"))
    address = f"127.0.0.1:{memory_options.grpc_port}"
    front, front_options = triton_process(
        "front", releases=world.releases, signals=signals, embed_items=address, retrieve=address
    )
    with ExitStack() as running:
        memory_host = running.enter_context(Supervisor([memory], print))
        running.enter_context(Supervisor([front], print))
        client = running.enter_context(triton.InferenceServerClient(f"127.0.0.1:{front_options.grpc_port}"))
        for request in REQUESTS.values():
            assert_same_answer(ask(client, request), request, in_process)
        answers = ask_all(client, list(REQUESTS.values()) * 4)
        assert all(isinstance(answer, dict) for answer in answers)
        expired, unknown = ask_all(client, [request_of(1, remaining_ms=0), request_of(1, release=9)])
        assert [type(expired), type(unknown)] == [DeadlineExceeded, ReleaseNotOpen]
        memory_host.stop()
        with pytest.raises(Unavailable, match="the serving stages do not answer"):
            ask(client, request_of(1))


def test_without_a_signal_service_the_answer_is_degraded_and_marked(world, in_process):
    nobody = free_port()
    process, options = triton_process("triton", releases=world.releases, signals=f"127.0.0.1:{nobody}")
    with Supervisor([process], print), triton.InferenceServerClient(f"127.0.0.1:{options.grpc_port}") as client:
        answer = ask(client, request_of(1))
    assert Status(answer["status"]) == Status.COLD_START | Status.SIGNALS_UNAVAILABLE
    (cold,) = recommend([request_of(-(2**62))], in_process)
    np.testing.assert_array_equal(answer["candidate_ids"], cold.candidates.candidate_ids)


def test_no_listed_release_that_opens_ends_the_server(world, signals):
    process, _ = triton_process("triton", releases=world.releases, signals=signals)
    with (
        serving(world.releases, 3, 3),
        pytest.raises(PinrecError, match=r"triton ended by itself with exit code 1"),
        Supervisor([process], print),
    ):
        pass
