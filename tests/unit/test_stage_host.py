"""A stage behind its host: by release, deadlines first, each request answered on its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pinrec_core.errors import InvalidRelease, PinrecError, ReleaseNotOpen, Unavailable
from pinrec_core.messages import EmbedItemsInput, FetchSignalsInput
from pinrec_core.serving.deadline import deadline_of, with_deadline
from pinrec_core.serving.stage_host import StageHost

MS = 1_000_000
NOW = 5_000 * MS


class Recorder:
    """Answers each request with its first item id plus an offset; remembers batches; fails on the ids it is told."""

    def __init__(self, offset=0, poison=(), clock=None, takes_ns=0):
        self.offset, self.poison, self.clock, self.takes_ns = offset, poison, clock, takes_ns
        self.batches = []

    def run(self, batch):
        self.batches.append([int(message.item_ids[0]) for message in batch])
        if self.clock is not None:
            self.clock.now += self.takes_ns
        if any(message.item_ids[0] in self.poison for message in batch):
            raise ZeroDivisionError("at /srv/secret.py")
        return [int(message.item_ids[0]) + self.offset for message in batch]


class Releases:
    """Stages by release number, as OpenReleases gives them."""

    def __init__(self, **stages):
        self.stages = {int(name[1:]): stage for name, stage in stages.items()}

    def get(self, number):
        if number not in self.stages:
            raise ReleaseNotOpen(number, tuple(self.stages))
        return self.stages[number]


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


def embed(item_id, release=1, deadline_ns=NOW + 100 * MS, remaining_ms=0):
    return EmbedItemsInput(np.array([item_id], dtype=np.int64), release, deadline_ns, remaining_ms)


def run(stages, batch, clock=None):
    return StageHost("embed_items", stages, clock or Clock()).run(batch)


def values(answers):
    return [type(a.value).__name__ if isinstance(a.value, PinrecError) else a.value for a in answers]


def test_one_call_a_release_and_answers_in_order():
    one, two = Recorder(offset=100), Recorder(offset=200)
    answers = run(Releases(r1=one, r2=two), [embed(1), embed(2, release=2), embed(3), embed(4, release=2)])
    assert values(answers) == [101, 202, 103, 204]
    assert [answer.release for answer in answers] == [1, 2, 1, 2]
    assert one.batches == [[1, 3]]
    assert two.batches == [[2, 4]]


def test_expired_requests_are_dropped_first():
    stage = Recorder()
    batch = [embed(1, deadline_ns=NOW), embed(2, deadline_ns=NOW + 1), embed(3, deadline_ns=NOW - MS)]
    answers = run(Releases(r1=stage), batch)
    assert values(answers) == ["DeadlineExceeded", 2, "DeadlineExceeded"]
    assert answers[0].value.message == "the deadline passed before embed_items"
    assert stage.batches == [[2]]


def test_nothing_runs_when_all_have_expired():
    stage = Recorder()
    answers = run(Releases(r1=stage), [embed(1, deadline_ns=1)])
    assert values(answers) == ["DeadlineExceeded"]
    assert stage.batches == []


def test_time_of_one_release_counts_against_the_next():
    clock = Clock()
    slow = Recorder(clock=clock, takes_ns=50 * MS)
    answers = run(Releases(r1=slow, r2=Recorder()), [embed(1), embed(2, release=2, deadline_ns=NOW + 20 * MS)], clock)
    assert values(answers) == [1, "DeadlineExceeded"]


def test_elapsed_is_the_groups_own_time():
    clock = Clock()
    stages = Releases(r1=Recorder(clock=clock, takes_ns=3 * MS), r2=Recorder(clock=clock, takes_ns=7 * MS))
    answers = run(stages, [embed(1), embed(2, release=2), embed(3)], clock)
    assert [answer.elapsed_us for answer in answers] == [3_000, 7_000, 3_000]


def test_a_poisoned_request_fails_alone_and_says_nothing(caplog):
    stage = Recorder(poison={2})
    answers = run(Releases(r1=stage), [embed(1), embed(2), embed(3)])
    assert values(answers) == [1, "PinrecError", 3]
    assert answers[1].value.message == "internal error of a serving stage"
    assert stage.batches == [[1, 2, 3], [1], [2], [3]]
    assert "/srv/secret.py" in caplog.text


def test_an_error_that_the_stage_knows_is_not_tried_again():
    class Down:
        calls = 0

        def run(self, batch):
            self.calls += 1
            raise Unavailable("no answer")

    stage = Down()
    answers = run(Releases(r1=stage), [embed(1), embed(2)])
    assert values(answers) == ["Unavailable", "Unavailable"]
    assert stage.calls == 1


def test_a_stage_may_answer_single_requests_with_errors():
    stage = SimpleNamespace(run=lambda batch: [7, InvalidRelease("no")])
    assert values(run(Releases(r1=stage), [embed(1), embed(2)])) == [7, "InvalidRelease"]


def test_a_wrong_number_of_results_reaches_nobody(caplog):
    stage = SimpleNamespace(run=lambda batch: [1, 2, 3])
    assert values(run(Releases(r1=stage), [embed(1), embed(2)])) == ["PinrecError", "PinrecError"]
    assert "3 results for 2 requests" in caplog.text


def test_unknown_release_and_undecodable_request_among_good_ones():
    answers = run(Releases(r1=Recorder()), [embed(1), embed(2, release=9), PinrecError("unreadable")])
    assert values(answers) == [1, "ReleaseNotOpen", "PinrecError"]
    assert answers[2].value.message == "unreadable"


def test_empty_batch():
    assert run(Releases(), []) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (embed(1, deadline_ns=NOW + 3, remaining_ms=50), NOW + 3),
        (embed(1, deadline_ns=0, remaining_ms=50), NOW + 50 * MS),
        (FetchSignalsInput(1, 1, "", 0, 1, remaining_ms=20), NOW + 20 * MS),
    ],
    ids=["this host's", "another host's", "the gateway's"],
)
def test_deadline_rule(message, expected):
    assert deadline_of(message, NOW) == expected


def test_the_stage_sees_an_absolute_deadline():
    seen = []
    stage = SimpleNamespace(run=lambda batch: [seen.append(message.deadline_ns) for message in batch])
    run(Releases(r1=stage), [embed(1, deadline_ns=0, remaining_ms=30), embed(2)])
    assert seen == [NOW + 30 * MS, NOW + 100 * MS]


def test_with_deadline_leaves_other_messages_alone():
    local, first = embed(1), FetchSignalsInput(1, 1, "", 0, 1, remaining_ms=20)
    assert with_deadline(local, NOW) is local
    assert with_deadline(first, NOW) is first
    remote = replace(local, deadline_ns=0, remaining_ms=1)
    assert with_deadline(remote, NOW).deadline_ns == NOW + MS
    assert remote.deadline_ns == 0
