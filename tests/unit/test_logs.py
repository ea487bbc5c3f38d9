import asyncio
import json
import logging
import sys
from contextvars import copy_context

import grpc
import pytest
from prometheus_client import CollectorRegistry

from pinrec_core.errors import InvalidConfig
from pinrec_core.serving.log_lines import JsonLines, TextLines, stage_lines
from services.common.logs import FailedCalls, facts_of_call, note_call
from services.common.metrics import GatewayMetrics
from services.gateway.reply import observe_reply
from services.proto.candidates_pb2 import GetCandidatesResponse


def record(message, *values, exc_info=None):
    made = logging.LogRecord("services.x", logging.WARNING, "x.py", 1, message, values, exc_info)
    made.created = 1_700_000_000.25
    return made


def test_a_json_line_by_hand():
    line = JsonLines("gateway", lambda: {"request_id": "r1"}).format(record("lost %d\nof them", 3))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "WARNING",
        "process": "gateway",
        "logger": "services.x",
        "message": "lost 3\nof them",
        "request_id": "r1",
    }


def test_an_exception_stays_in_its_json_line():
    try:
        raise ValueError("why")
    except ValueError:
        line = JsonLines("gateway").format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("ValueError: why")


def test_a_text_line_ends_with_the_facts():
    line = TextLines(facts=lambda: {"request_id": "r1", "trace_id": "ab"}).format(record("lost %d", 3))
    assert line.endswith(" WARNING services.x: lost 3 [request_id=r1 trace_id=ab]")
    assert TextLines("generate").format(record("lost")).endswith(" WARNING generate: lost")


def test_a_stage_refuses_a_format_that_does_not_exist():
    assert isinstance(stage_lines("generate", "json"), JsonLines)
    with pytest.raises(InvalidConfig, match="PINREC_LOG_FORMAT has value 'xml'; allowed: text, json"):
        stage_lines("generate", "xml")


async def test_facts_belong_to_one_call():
    async def call(number):
        note_call(request_id=number)
        await asyncio.sleep(0)
        note_call(trace_id="t" + number)
        return facts_of_call()

    assert await asyncio.gather(asyncio.create_task(call("1")), asyncio.create_task(call("2"))) == [
        {"request_id": "1", "trace_id": "t1"},
        {"request_id": "2", "trace_id": "t2"},
    ]
    assert facts_of_call() == {}


def test_a_caller_cannot_write_lines_of_its_own():
    context = copy_context()
    context.run(note_call, request_id="r1\n2026 INFO all is well", longer="x" * 1_000)
    facts = context.run(facts_of_call)
    assert facts == {"request_id": r"'r1\n2026 INFO all is well'", "longer": "x" * 128}
    assert "\n" not in TextLines(facts=lambda: facts).format(record("lost"))


def test_a_degraded_answer_is_noted():
    reply = GetCandidatesResponse(degraded=True, degraded_reason="signals_unavailable")
    context = copy_context()
    context.run(observe_reply, reply, GatewayMetrics(CollectorRegistry()))
    assert context.run(facts_of_call) == {"degraded": "signals_unavailable"}


def test_failed_calls_have_one_line_a_second_for_each_method_and_code(caplog):
    now_s = 10.0
    failed = FailedCalls(lambda: now_s)
    for _ in range(3):
        failed.ended("GetCandidates", grpc.StatusCode.UNAVAILABLE, "no stage", 0.0125)
    failed.ended("GetCandidates", grpc.StatusCode.DEADLINE_EXCEEDED, "late", 1.0)
    failed.ended("GetCandidates", grpc.StatusCode.INVALID_ARGUMENT, "the caller's own", 0.001)
    failed.ended("GetCandidates", grpc.StatusCode.OK, "", 0.001)
    now_s = 11.0
    failed.ended("GetCandidates", grpc.StatusCode.UNAVAILABLE, "no stage", 0.002)
    assert [line.getMessage() for line in caplog.records] == [
        "GetCandidates ended as UNAVAILABLE after 12.5 ms: no stage",
        "GetCandidates ended as DEADLINE_EXCEEDED after 1000.0 ms: late",
        "GetCandidates ended as UNAVAILABLE after 2.0 ms: no stage; 2 more since the last such line",
    ]
