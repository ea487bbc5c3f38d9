"""What the fault tests judge by, worked by hand; their own HTTP/2, their wrong clock and their bad link, tried."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from benchmarks import capacity
from benchmarks.chaos import malformed, network, overload, soak, wrong_requests
from benchmarks.chaos.calling import FULL, kind_of, recovery_s
from benchmarks.chaos.fleet import listening
from benchmarks.chaos.http2 import call_of, frame, grpc_headers, message_of, opening
from benchmarks.chaos.writers import Writer
from loadtest.open_loop import Call
from pinrec_core.config import ServeConfig
from pinrec_core.schema import Vocabulary
from services.cli.supervisor import Process
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import Candidate, GetCandidatesRequest, GetCandidatesResponse
from services.proto.signals_pb2 import AppendEventsRequest, Event, GetHistoriesRequest, HistoryRequest

OK, INVALID = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED
VOCABULARY = Vocabulary(("save", "click"), ("save", "click"), ("home", "search"), ("search",))


def call(at, took=0.01, code=OK, answer=FULL, late=0.0):
    return Call(at, at + took, late, code, answer if code is OK else None)


def answer(filled, count=50, reason=""):
    candidates = [Candidate(item_id=i, filled=filled) for i in range(count)]
    return GetCandidatesResponse(candidates=candidates, degraded=bool(reason), degraded_reason=reason)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (answer(filled=False), "full"),
        (answer(filled=True, reason="stages_unavailable"), "degraded: stages_unavailable"),
        (answer(filled=True), "NOT MARKED as degraded"),
        (answer(filled=False, count=49), "SHORT"),
    ],
)
def test_an_answer_is_told_apart(reply, kind):
    assert kind_of(reply) == kind


def test_recovery_counts_to_the_last_call_that_was_not_full():
    calls = [call(1.0), call(2.0, code=INVALID), call(3.5, answer="degraded: x"), call(4.0, code=REFUSED)]
    assert recovery_s(calls, 2.0) == 1.5
    assert recovery_s(calls, 4.0) == 0.0


def test_recovery_after_an_overload_is_the_start_of_the_first_calm_second():
    """A call every 0.1 s: the one at 10.4 is refused, the one at 10.9 late. The calm second begins at 11.0."""
    calls = [call(10 + place / 10) for place in range(40)]
    calls[4], calls[9] = call(10.4, code=REFUSED), call(10.9, took=0.5)
    assert overload.recovery_after(calls, since_s=10.0, in_time_s=0.2) == pytest.approx(1.0)
    assert overload.recovery_after([call(10.0, code=REFUSED)], 10.0, 0.2) == float("inf")


def test_an_overload_is_judged_from_the_moment_of_sending():
    """20 s: 8 of 10 calls a second get in and take 20 ms, as alone; 2 are refused in 5 ms. All are sent 1 s late."""
    during = [
        call(second + tenth / 10, took=1.02 if tenth < 8 else 1.005, code=OK if tenth < 8 else REFUSED, late=1.0)
        for second in range(100, 120)
        for tenth in range(10)
    ]
    alone, after = [call(n, took=0.02) for n in range(10)], [call(120 + n / 10, took=0.02) for n in range(20)]
    rows = overload.judged(8.0, alone, during, after, began=100.0, is_pinned=False)
    assert [row.met for row in rows] == [True, True, True, True]
    figures = rows[0].figures
    assert figures["goodput_rps"] == pytest.approx(8.0, rel=0.05)
    assert figures["admitted_p99_ms"] == pytest.approx(20.0)
    assert figures["refused_max_ms"] == pytest.approx(5.0)
    slow = [call(c.scheduled_s, took=0.1, code=c.code) for c in during]
    worse = overload.judged(20.0, alone, slow, [call(120.0, code=REFUSED)], began=100.0, is_pinned=False)
    assert [row.met for row in worse] == [False, False, False, False]


def test_growth_compares_tenths_after_the_warm_up():
    """100 looks: 20 of warm-up, then 8 at 100 MB ... 8 at 103 MB."""
    samples = [50.0] * 20 + [100.0] * 40 + [103.0] * 40
    assert soak.growth(samples) == (100.0, 103.0, pytest.approx(0.03))
    writer = Writer("", 1, 0, 1)
    grown = soak.judged(5.0, [call(0.0), call(60.0)], {"gateway": samples, "items": [0.0] * 100}, writer, restarts=0)
    assert [row.met for row in grown] == [True, False]
    flat = soak.judged(5.0, [call(0.0, code=REFUSED)], {"gateway": [1.0] * 100}, writer, restarts=0)
    assert [row.met for row in flat] == [False, True]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, OK),
        ({"surface": "Home"}, INVALID),
        ({"budget": {}}, INVALID),
        ({"budget": {"save": 0.0}}, INVALID),
        ({"budget": {"save": 1.0, "click": -1.0}}, INVALID),
        ({"budget": {"save": float("nan")}}, INVALID),
        ({"budget": {"watch": 1.0}}, INVALID),
        ({"num_candidates": 1_000}, OK),
        ({"num_candidates": 1_001}, INVALID),
        ({"search_query": "boots"}, INVALID),
        ({"search_query": "boots", "surface": "search"}, OK),
        ({"search_query": "x" * 513, "surface": "search"}, INVALID),
        ({"exclude_item_ids": [1] * 2_001}, INVALID),
        ({"request_id": "x" * 129}, INVALID),
    ],
)
def test_what_get_candidates_must_answer(changes, code):
    base = {"user_id": 1, "surface": "home", "budget": {"save": 1.0}, "num_candidates": 5}
    expected = wrong_requests.candidates_code(VOCABULARY, ServeConfig())
    assert expected(GetCandidatesRequest(**{**base, **changes})) is code


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, OK),
        ({"item_type": "query"}, INVALID),
        ({"action": "search"}, INVALID),
        ({"item_type": "search_query", "action": "search", "item_id": 0, "text": "boots"}, OK),
        ({"item_type": "search_query", "action": "search", "item_id": 0, "text": "!"}, INVALID),
        ({"timestamp_ms": 99_999_999_999}, INVALID),
        ({"text": "x" * 513}, INVALID),
    ],
)
def test_what_append_events_must_answer(changes, code):
    base = {"user_id": 1, "item_id": 2, "item_type": "pin", "action": "save", "surface": "home"}
    event = Event(**{**base, "timestamp_ms": 100_000_000_000, **changes})
    assert wrong_requests.append_code(AppendEventsRequest(events=[event])) is code
    assert wrong_requests.append_code(AppendEventsRequest()) is INVALID


def test_what_get_histories_must_answer():
    expected = wrong_requests.histories_code(3, ["home", "search"])
    assert expected(GetHistoriesRequest(release=2)) is grpc.StatusCode.UNAVAILABLE
    assert expected(GetHistoriesRequest(release=3, requests=[HistoryRequest(surface=2)])) is OK
    assert expected(GetHistoriesRequest(release=3, requests=[HistoryRequest(surface=3)])) is INVALID


def test_frames_are_those_of_the_rfc():
    assert frame(4, 1, 0) == b"\0\0\0\x04\x01\0\0\0\0"
    assert message_of(b"abc") == b"\0\0\0\0\x03abc"
    assert opening(window=0).endswith(b"\x00\x04\0\0\0\0")
    assert grpc_headers("/a/B", 1.5).startswith(b"\0\x07:method\x04POST\0\x07:scheme\x04http\0\x05:path\x04/a/B")
    assert call_of(1, b"h", b"m") == b"\0\0\x01\x01\x04\0\0\0\x01h" + b"\0\0\x06\0\x01\0\0\0\x01" + message_of(b"m")


def test_damaged_messages_and_bytes_are_as_many_kinds_as_promised():
    rng = random.Random(0)
    made = [malformed.damaged(rng, b"0123456789") for _ in range(300)]
    assert any(len(one) < 10 for one in made)
    assert any(one == b"0123456789" * 3 for one in made)
    assert any(len(one) == 10 and one != b"0123456789" for one in made)
    kinds = {malformed.bytes_of(rng, number)[:4] for number in range(9)}
    assert {b"PRI ", b"GET ", b"\x16\x03\x01\x02"} <= kinds


class Gateway(candidates_pb2_grpc.CandidateServiceServicer):
    """Refuses every second user."""

    def GetCandidates(self, request, context):  # noqa: N802
        if request.user_id % 2:
            context.abort(REFUSED, "full")
        return answer(filled=False)


def test_callers_by_hand_see_what_a_grpc_client_sees():
    server = grpc.server(ThreadPoolExecutor(2))
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(Gateway(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    calls = asyncio.run(overload.flood(f"127.0.0.1:{port}", rate=400.0, seconds=0.5))
    server.stop(0).wait()
    assert 130 < len(calls) < 270
    assert {(one.code, one.answer) for one in calls} == {(OK, FULL), (REFUSED, None)}
    assert abs(sum(one.code is OK for one in calls) - len(calls) / 2) < 30
    assert all(one.done_s >= one.scheduled_s for one in calls)


def test_a_module_of_ours_sees_the_wrong_clock_and_a_library_the_true_one(tmp_path):
    (tmp_path / "clock").write_text("7200")
    script = (
        "import sys; from pathlib import Path; from benchmarks.chaos.clock import set_wrong; "
        f"set_wrong(Path({str(tmp_path / 'clock')!r})); import time; import random; "
        "exec('import time as true', vars(random)); print(time.time() - random.true.time(), time.monotonic() > 0)"
    )
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert float(printed[0]) == pytest.approx(7_200, abs=5)
    assert printed[1] == "True"


def test_the_address_of_a_server_is_that_of_its_command():
    assert listening(Process("x", ["python", "--listen", "h:1", "--metrics-port", "2"], lambda: True)) == "h:1"


@pytest.mark.skipif(not network.is_possible(), reason="a link needs root and /dev/net/tun")
def test_a_link_delays_and_loses_packets(requires_program):
    requires_program("ip")
    echo = (
        "import socket; s = socket.create_server(('0.0.0.0', 7007)); print('up', flush=True); c, _ = s.accept()\n"
        "while data := c.recv(100): c.sendall(data)"
    )
    with network.Link(77) as link:
        server = subprocess.Popen([*link.inside, sys.executable, "-c", echo], stdout=subprocess.PIPE)
        assert server.stdout.readline() == b"up\n"
        with socket.create_connection((link.inner, 7007), timeout=30) as client:
            with network.disturbed(link, delay_s=0.1):
                start = time.monotonic()
                client.sendall(b"a")
                assert client.recv(1) == b"a"
                assert time.monotonic() - start >= 0.2, "there and back"
            client.settimeout(0.3)
            with network.disturbed(link, loss=1.0):
                client.sendall(b"b")
                with pytest.raises(TimeoutError):
                    client.recv(1)
            client.settimeout(30)
            assert client.recv(1) == b"b", "TCP has sent it again"
        server.kill()
        server.communicate()


def test_the_arithmetic_of_capacity():
    """1 M users of 240 events and 16 a day: 1e6 x (240 x 33 + 24) = 7.944 GB, 1e6 x 48 x 22 = 1.056 GB, 185/s; 1 G
    items of D = 256: 409 GB of index, 269 + 20 GB at each signal service, which leaves 111 of 400; a prefill of
    2 x 85e6 x 257 = 43.69 GFLOP, so 1,144 requests/s at 50 TFLOPS."""
    size = capacity.Size(users=1e6, items=1e9, rps=10_000)
    rows = capacity.needs(size, {"gateway": 1.5, "signals": 0.5})
    measured = {row.what.rsplit(": ", 1)[1]: row.measured for row in rows}
    assert measured["GPUs for the decoder"].endswith("1,144 requests/s at 50 TFLOPS (not measured): 9 GPUs")
    assert measured["cores for gateways"] == "15"
    assert measured["batch view"] == "8 GB, divided over the signal services"
    assert measured["hosts of signal services"] == "8 GB: 1 host with 111 GB for it beside those 289 GB"
    assert measured["realtime view, one copy"] == "1 GB: 1 host with 400 GB for it"
    assert measured["events to append"].startswith("185/s on average: 1 x what one service")
    assert measured["index, one replica"] == "409 GB: 2 hosts with 400 GB for it"
    assert measured["item table, on the host of each signal service"] == "269 GB mapped, and 20 GB of memory"
    assert "89 kB of history a request: 7.1 Gbit/s" in measured["network into the GPU hosts"]
    assert measured["network out of the gateways"] == "300 candidates: 0.6 Gbit/s"


def test_what_every_host_must_hold_counts_before_what_is_divided():
    """500 M users: 3,972 GB over hosts that have 400 - 289 GB left, so 36; 528 GB of realtime view; 92,593/s."""
    costs = {"gateway": 1.5, "signals": 0.5}
    rows = capacity.needs(capacity.Size(users=500e6, items=1e9, rps=1), costs)
    measured = {row.what.rsplit(": ", 1)[1]: row.measured for row in rows}
    assert measured["hosts of signal services"].startswith("3,972 GB: 36 hosts with 111 GB")
    assert measured["realtime view, one copy"].startswith("528 GB: 2 hosts")
    assert measured["events to append"].startswith("92,593/s on average: 2 x")
    rows = capacity.needs(capacity.Size(users=1, items=2e9, rps=1), costs)
    assert "none of 400 GB will do: 578 GB are on each" in {row.measured for row in rows}
