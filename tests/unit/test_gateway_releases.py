"""The try of a release and what a gateway says about itself: real release folders, an ensemble that answers as told."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.config import Config
from pinrec_core.errors import InvalidRelease, InvalidRequest, Overloaded, ReleaseNotOpen, Unavailable
from pinrec_core.messages import Status
from pinrec_core.release import ItemTable, ReleaseFacts, ServingState, publish, write_serving_state
from pinrec_core.release.golden import CANARY_USER_ID, GoldenRequest, write_golden
from pinrec_core.schema import Vocabulary
from pinrec_core.serving.contract import STAGES
from services.common.metrics import GatewayMetrics
from services.gateway.group import Group
from services.gateway.in_flight import InFlight
from services.gateway.releases import ReleaseServicer, Trial, judged
from services.proto.releases_pb2 import GetReleaseStatusRequest, TryReleaseRequest

GOLDEN = [
    GoldenRequest(1, (2, 2), "", (), 1_700_000_000_000, (1, 2, 3, 4)),
    GoldenRequest(2, (4, 0), "oak", (9,), 1_700_000_000_000, (5, 6, 7, 8)),
]


class AnsweringEnsemble:
    """Answers each request with the next of `answers`: item ids, or an error; the last one again and again."""

    def __init__(self, *answers, status=Status.OK, echo=2):
        self._answers = list(answers)
        self._status = status
        self._echo = echo
        self.asked = []
        self.hold = asyncio.Event()
        self.hold.set()

    async def infer(self, request, timeout_s, request_id):
        self.asked.append(request)
        await self.hold.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        output = SimpleNamespace(candidate_ids=np.array(answer), status=int(self._status))
        return SimpleNamespace(
            output=output, stage_releases=dict.fromkeys([stage.name for stage in STAGES], self._echo)
        )


@pytest.fixture
def root(tmp_path):
    """Releases 1 and 2, the second with golden requests; both open."""

    def write(folder, golden=()):
        (folder / "config.json").write_text(json.dumps(Config().to_dict()))
        vocabulary = Vocabulary(("save", "click"), ("save", "click"), ("home", "search"))
        (folder / "vocabulary.json").write_text(json.dumps(vocabulary.to_dict()))
        ids = np.arange(100)
        ItemTable(ids, np.zeros(100, np.uint8), np.zeros((100, 4), np.int8), np.zeros(100, np.float32)).save(
            folder / "items"
        )
        if golden:
            write_golden(folder, golden)

    facts = ReleaseFacts("f", "f", 0, "toy")
    publish(tmp_path, facts, write)
    publish(tmp_path, facts, lambda folder: write(folder, GOLDEN))
    publish(tmp_path, facts, lambda folder: write(folder, GOLDEN))
    write_serving_state(tmp_path, ServingState(1, (1, 2)))
    return tmp_path


def served(root, ensemble):
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    watch = SimpleNamespace(is_ready=True)
    group = Group.alone()
    group.admit(1)
    return ReleaseServicer(root, ensemble, watch, InFlight(metrics.in_flight, group), metrics), registry


def tried(root, ensemble, release=2):
    async def run():
        return await served(root, ensemble)[0].TryRelease(TryReleaseRequest(release=release), None)

    return asyncio.run(run())


def test_golden_requests_are_sent_as_they_were_recorded():
    (first, second) = (golden.to_request(release=2, remaining_ms=50) for golden in GOLDEN)
    assert (first.user_id, first.surface, first.counts.tolist(), first.include_seen) == (
        CANARY_USER_ID,
        1,
        [2, 2],
        True,
    )
    assert (second.search_query, second.exclude_item_ids.tolist(), second.release) == ("oak", [9], 2)
    assert (second.request_time_ms, second.remaining_ms) == (1_700_000_000_000, 50)


def test_what_comes_back_in_another_order_passes(root):
    answer = tried(root, AnsweringEnsemble([4, 3, 2, 1], [1, 2, 3, 4], [8, 7, 6, 5]))
    assert (answer.problem, answer.num_requests, answer.mean_overlap, answer.min_overlap) == ("", 2, 1.0, 1.0)
    assert 0 < answer.p50_ms <= answer.p99_ms


def test_items_of_another_model_are_refused(root):
    answer = tried(root, AnsweringEnsemble([1, 2, 3, 4], [1, 2, 3, 99], [5, 50, 51, 52]))
    assert (answer.mean_overlap, answer.min_overlap) == (0.5, 0.25)  # (3/4 + 1/4) / 2
    assert answer.problem == "0.500 of the expected items came back; allowed: at least 0.9"


def test_items_that_came_after_the_release_do_not_count_against_it(root):
    answer = tried(root, AnsweringEnsemble([1, 2, 3, 4], [1, 2, 3, 1_000], [5, 6, 1_001, 1_002]))
    assert (answer.problem, answer.mean_overlap) == ("", 1.0)


def test_the_bounds_are_the_release_s_own():
    release = SimpleNamespace(config=SimpleNamespace(serve=replace(Config().serve, golden_p99_ms=20.0)))
    assert judged(release, [Trial(0.9, 20.0)]).problem == ""
    assert judged(release, [Trial(0.9, 21.0)]).problem == "the p99 of golden requests is 21.0 ms; allowed: at most 20.0"


def test_a_try_waits_until_all_stages_hold_the_release(root):
    not_open = ReleaseNotOpen(2, (1,))
    ensemble = AnsweringEnsemble(not_open, not_open, [1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8])
    assert tried(root, ensemble).problem == ""
    assert len(ensemble.asked) == 2 + 1 + 2, "the first answer is not measured"


def test_a_try_ends_when_serving_json_drops_the_release(root):
    class Dropping(AnsweringEnsemble):
        async def infer(self, request, timeout_s, request_id):
            write_serving_state(root, ServingState(1, (1,)))
            return await super().infer(request, timeout_s, request_id)

    assert "serving.json lists as open: [1]" in tried(root, Dropping(ReleaseNotOpen(2, (1,)))).problem


@pytest.mark.parametrize(
    ("ensemble", "problem"),
    [
        (
            lambda: AnsweringEnsemble(InvalidRelease("release 2: file x is missing")),
            "1 of 2: release 2: file x is missing",
        ),
        (lambda: AnsweringEnsemble([1, 2, 3, 4], [1, 2, 3, 4], Unavailable("down")), "golden request 2 of 2: down"),
        (lambda: AnsweringEnsemble([1], status=Status.SIGNALS_UNAVAILABLE), "the signal service did not answer"),
        (lambda: AnsweringEnsemble([1], echo=1), "'generate': 1"),
    ],
    ids=["damaged", "a stage is down", "no signals", "mixed"],
)
def test_what_goes_wrong_in_a_try_is_told(root, ensemble, problem):
    answer = tried(root, ensemble())
    assert problem in answer.problem
    assert (answer.num_requests, answer.mean_overlap) == (2, 0.0)


@pytest.mark.parametrize(
    ("release", "error", "words"),
    [
        (3, InvalidRequest, r"release has value 3; allowed: one that serving.json lists as open: \[1, 2\]"),
        (1, InvalidRelease, "has no golden requests: export it again, or activate it --offline"),
    ],
)
def test_a_release_that_cannot_be_tried(root, release, error, words):
    with pytest.raises(error, match=words):
        tried(root, AnsweringEnsemble([1]), release)


def test_damaged_golden_requests_are_refused(root):
    for text in ('{"requests": 7}', '{"requests": [{"surfaces": 1}]}', '{"requests": []}', "{}", "["):
        (root / "2" / "golden" / "requests.json").write_text(text)
        with pytest.raises(InvalidRelease, match=r"release 2: .*requests\.json"):
            tried(root, AnsweringEnsemble([1]))


async def test_status_counts_requests_by_release_tries_included(root):
    ensemble = AnsweringEnsemble([1, 2, 3, 4])
    ensemble.hold.clear()
    servicer, registry = served(root, ensemble)
    failed = partial(registry.get_sample_value, "pinrec_gateway_release_tries_total", {"result": "failed"})
    assert failed() == 0  # an alert on the first failure needs it
    trying = asyncio.create_task(servicer.TryRelease(TryReleaseRequest(release=2), None))
    while not ensemble.asked:
        await asyncio.sleep(0.001)
    status = await servicer.GetReleaseStatus(GetReleaseStatusRequest(), None)
    assert (status.admitted, status.ready, dict(status.in_flight)) == (1, True, {2: 1})
    with pytest.raises(Overloaded, match="another release is being tried"):
        await servicer.TryRelease(TryReleaseRequest(release=2), None)
    ensemble.hold.set()
    assert (await trying).problem
    status = await servicer.GetReleaseStatus(GetReleaseStatusRequest(), None)
    assert dict(status.in_flight) == {}
    assert failed() == 1
