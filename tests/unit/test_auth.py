"""The gate: the table of methods is complete, who may call what, how much, and that refusals tell nothing."""

import asyncio
import logging
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

from pinrec_core.errors import InvalidConfig, LimitExceeded, NotAllowed, Unauthenticated
from services.common.auth import METHODS, OPEN, RETRY_PUSHBACK, Gate, GateInterceptor, pushback
from services.common.limits import Limits
from services.common.metrics import AccessMetrics
from services.common.tokens import SCOPES, Client, digest_of, new_token, write_clients
from services.proto import candidates_pb2, items_pb2, releases_pb2, signals_pb2

PROTOS = (candidates_pb2, items_pb2, releases_pb2, signals_pb2, reflection_pb2, health_pb2)
GET = "/pinrec.v1.CandidateService/GetCandidates"
BATCH = "/pinrec.v1.CandidateService/BatchGetCandidates"
TRY = "/pinrec.v1.ReleaseService/TryRelease"
STREAM = "/pinrec.v1.SignalService/AppendEventsStream"


def test_every_method_of_every_service_has_a_scope():
    """Whoever adds an rpc decides here who may call it; without a line it is refused to all."""
    services = [service for proto in PROTOS for service in proto.DESCRIPTOR.services_by_name.values()]
    methods = {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}
    newer_reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"  # its proto is not installed
    methods[newer_reflection] = methods[newer_reflection.replace("v1", "v1alpha", 1)]
    assert {*METHODS, OPEN} == set(methods)
    for name, rule in METHODS.items():
        assert rule.scope in SCOPES
        assert rule.streamed == methods[name].client_streaming


def test_a_batch_costs_what_its_users_would_have_cost_alone():
    def requests(name, count):
        return METHODS[name].requests(SimpleNamespace(requests=[None] * count))

    batches = {name for name in METHODS if requests(name, 7) == 7}
    assert batches == {BATCH, "/pinrec.v1.SignalService/GetHistories"}
    assert {requests(name, 0) for name in METHODS} == {1}


class Door:
    """A gate, its tokens file, its clock and its log of results."""

    def __init__(self, folder, **clients):
        self.path = folder / "tokens.toml"
        self.tokens = {name: new_token() for name in clients}
        self.clients = {}
        self.write(**clients)
        self.registry = CollectorRegistry()
        self.now_s = 0.0
        self.gate = Gate(self.path, AccessMetrics(self.registry), lambda: self.now_s)

    def write(self, **clients):
        for name, (scopes, limits) in clients.items():
            digest = digest_of(self.tokens.setdefault(name, new_token()))
            self.clients[name] = Client(name, scopes, (digest,), limits)
        write_clients(self.path, self.clients)

    def enter(self, name, method=GET):
        return self.gate.enter(method, (("user-agent", "x"), ("authorization", f"Bearer {self.tokens[name]}")))

    def counted(self, client, result):
        return self.registry.get_sample_value("pinrec_client_calls_total", {"client": client, "result": result})


@pytest.fixture
def door(tmp_path):
    none = Limits()
    return Door(tmp_path, ranking=(("read",), none), log=(("append",), none), deploy=(("read", "admin"), none))


def test_a_scope_opens_its_methods_and_no_other(door):
    for name, client in door.clients.items():
        for method, rule in METHODS.items():
            if rule.scope in client.scopes:
                assert door.enter(name, method).name == name
            else:
                with pytest.raises(NotAllowed, match=f"client {name} may not call this method: it needs scope"):
                    door.enter(name, method)
    reads = sum(rule.scope == "read" for rule in METHODS.values())
    assert (door.counted("ranking", "admitted"), door.counted("ranking", "not_allowed")) == (
        reads,
        len(METHODS) - reads,
    )


def test_a_method_without_a_line_in_the_table_is_refused_to_all(door):
    for name in door.clients:
        with pytest.raises(NotAllowed, match="no scope allows it"):
            door.enter(name, "/pinrec.v1.CandidateService/DropEverything")


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {new_token()}"),),
        (("authorization", b"Bearer x"),),
        (("authorization", "Basic cGlucmVj"),),
        (("authorization", "Bearer \x00\ud800".encode("utf-8", "replace").decode()),),
        (("token", "ranking"),),
    ],
)
@pytest.mark.parametrize("method", [GET, TRY, "/pinrec.v1.CandidateService/DropEverything", "/", ""])
def test_who_is_unknown_is_told_the_same_whatever_it_asks(door, metadata, method):
    with pytest.raises(Unauthenticated) as refused:
        door.gate.enter(method, metadata)
    assert refused.value.message == "no known token; send one as metadata, authorization: Bearer TOKEN"
    assert door.counted("", "unauthenticated") == 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_word_before_a_token_may_be_written_in_any_case(door, scheme):
    assert door.gate.enter(GET, (("authorization", f"{scheme} {door.tokens['ranking']}"),)).name == "ranking"


def test_a_hash_from_the_file_is_no_token(door):
    with pytest.raises(Unauthenticated):
        door.gate.enter(GET, (("authorization", f"Bearer {door.clients['ranking'].digests[0]}"),))


def test_admin_calls_are_logged_with_their_client(door, caplog):
    with caplog.at_level(logging.INFO, "services.common.auth"):
        door.enter("deploy", TRY)
        door.enter("deploy")
    assert [record.getMessage() for record in caplog.records] == [f"client deploy calls {TRY}"]


def test_refused_callers_have_one_line_a_second_of_no_more_than_a_line(door, caplog):
    interceptor = GateInterceptor(door.gate, lambda: door.now_s)
    for door.now_s in (0.0, 0.5, 0.9, 1.0, 1.5):
        interceptor.tell(grpc.StatusCode.UNAUTHENTICATED, "ipv4:10.0.0.1:5", "/" + "\n" * 5_000)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("UNAUTHENTICATED: ipv4:10.0.0.1:5 asked for '/")
    assert "\n" not in lines[0]
    assert len(lines[0]) < 300


def test_a_changed_file_is_taken_up_within_a_second(door):
    door.write(fresh=(("read",), Limits()), ranking=(("append",), Limits()))
    del door.clients["log"]
    door.write()
    with pytest.raises(Unauthenticated):
        door.enter("fresh")
    door.now_s = 1.0
    assert door.enter("fresh").name == "fresh"
    with pytest.raises(NotAllowed):
        door.enter("ranking")
    with pytest.raises(Unauthenticated):
        door.enter("log", STREAM)


async def test_a_stream_ends_with_the_first_message_after_its_token(door):
    caller = door.enter("log", STREAM)
    await caller.pace(object())
    del door.clients["log"]
    door.write()
    door.now_s = 1.0
    with pytest.raises(Unauthenticated, match="the token that this stream was opened with has ended"):
        await caller.pace(object())


@pytest.mark.parametrize("harm", [lambda path: path.write_text("[clients.a]\nscopes=[]"), lambda path: path.unlink()])
def test_a_file_that_turns_wrong_is_logged_once_and_changes_nothing(door, caplog, harm):
    harm(door.path)
    for door.now_s in (1.0, 2.0, 3.0):
        assert door.enter("ranking").name == "ranking"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.records[0].getMessage().startswith("tokens known before stay in use: ")
    door.write()
    door.now_s = 4.0
    assert door.enter("ranking").name == "ranking"


def test_a_wrong_file_at_the_start_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match=r"tokens.toml: not a tokens file"):
        Gate(tmp_path / "tokens.toml", AccessMetrics(CollectorRegistry()))


def test_limits_are_the_clients_own_and_outlive_a_change_of_the_file(tmp_path):
    a_day = Limits(requests_per_day=2)
    door = Door(tmp_path, one=(("read",), a_day), other=(("read",), a_day))
    door.enter("one", BATCH).charge(SimpleNamespace(requests=[None, None]))
    assert door.enter("other").name == "other"
    door.write(third=(("read",), Limits()))
    door.now_s = 1.0
    assert door.enter("third").name == "third"
    with pytest.raises(LimitExceeded, match="the limit of this client is 2 requests a day"):
        door.enter("one")
    assert door.counted("one", "limited") == 1


async def test_messages_of_a_stream_wait_for_the_rate(tmp_path, monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)
        caller.allowance._counted_at_s -= seconds  # as if that time had passed

    door = Door(tmp_path, log=(("append",), Limits(requests_per_second=4.0, burst=2)))
    caller = door.enter("log", STREAM)
    caller.allowance._monotonic_s = lambda: 100.0
    caller.allowance._counted_at_s = 100.0
    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(4):
        await caller.pace(object())
    assert slept == [0.25, 0.25]


@pytest.mark.parametrize(
    ("error", "trailers"),
    [
        (LimitExceeded("5 requests per second", 0.1999), ((RETRY_PUSHBACK, "201"),)),
        (LimitExceeded("5 requests a day", 3_600.0), ((RETRY_PUSHBACK, "-1"),)),
    ],
)
def test_a_client_is_told_when_to_come_back(error, trailers):
    assert pushback(error) == trailers
