"""`pinrec recommend` as a client: what it sends, what it shows."""

import json
from concurrent.futures import ThreadPoolExecutor

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pinrec_core.errors import InvalidRequest
from services.cli.main import main
from services.cli.recommend import open_release_dir, parse_budget
from services.proto import candidates_pb2_grpc
from services.proto.candidates_pb2 import Candidate, GetCandidatesResponse, Why

REPLY = GetCandidatesResponse(
    candidates=[
        Candidate(item_id=50, score=0.912, outcome="save", why=Why(step=1, target_offset=2, embedding_index=3)),
        Candidate(item_id=2**62, score=0.0, outcome="click", filled=True),
    ],
    release=3,
    history_length=57,
    realtime_events=2,
    stage_latency_ms={"total": 34.06},
    embeddings_generated=24,
    embeddings_kept=8,
)


class Gateway(candidates_pb2_grpc.CandidateServiceServicer):
    """The far end: keeps what it was asked and gives the prepared answer."""

    def __init__(self):
        self.asked = []

    def GetCandidates(self, request, context):  # noqa: N802
        self.asked.append(request)
        if request.surface == "nowhere":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "surface has value 'nowhere'; allowed: one of ['home']")
        return REPLY


@pytest.fixture
def gateway():
    servicer, server = Gateway(), grpc.server(ThreadPoolExecutor(1))
    candidates_pb2_grpc.add_CandidateServiceServicer_to_server(servicer, server)
    servicer.address = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    yield servicer
    server.stop(0).wait()


def run(gateway, *arguments):
    base = ["recommend", "--user", "12", "--surface", "home", "--budget", "save=0.7,click=0.3"]
    return CliRunner().invoke(main, [*base, "--address", gateway.address, *arguments])


def test_options_become_the_request(gateway):
    options = ["-n", "5", "--query", "cats", "--exclude", "7", "--exclude", "8", "--include-seen", "--explain"]
    result = run(gateway, *options, "--request-id", "r1")
    assert result.exit_code == 0, result.output
    (asked,) = gateway.asked
    assert (asked.user_id, asked.surface, asked.num_candidates, asked.search_query) == (12, "home", 5, "cats")
    assert {k: round(v, 6) for k, v in asked.budget.items()} == {"save": 0.7, "click": 0.3}
    assert list(asked.exclude_item_ids) == [7, 8]
    assert (asked.include_seen, asked.explain, asked.request_id) == (True, True, "r1")


def test_table_shows_items_titles_outcomes_scores_and_why(gateway, tmp_path):
    pq.write_table(pa.table({"item_id": [50, 51], "title": ["Star Wars", "Other"]}), tmp_path / "items.parquet")
    lines = run(gateway, "--titles", str(tmp_path)).output.splitlines()
    assert lines[0] == ("user 12 on home | release 3 | history 57 (2 realtime) | 24 embeddings, 8 kept | 34.1 ms")
    assert lines[2].split() == ["#", "item", "title", "outcome", "score", "why"]
    assert lines[3].split() == [
        "1",
        "50",
        "Star",
        "Wars",
        "save",
        "0.912",
        "step",
        "1,",
        "offset",
        "2,",
        "embedding",
        "3",
    ]
    assert " ".join(lines[4].split()) == f"2 {2**62} click 0.000 popular"


def test_json_is_protobufs_own(gateway):
    reply = json.loads(run(gateway, "--json").output)
    assert reply["candidates"][1]["item_id"] == str(2**62)
    assert reply["candidates"][1]["filled"] is True
    assert reply["cold_start"] is False


def test_an_error_of_the_gateway_is_one_line(gateway):
    result = run(gateway, "--surface", "nowhere")
    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: INVALID_ARGUMENT from {gateway.address}: surface has value 'nowhere'; allowed: one of ['home']\n"
    )


def test_titles_from_a_folder_without_items_is_one_line(gateway, tmp_path):
    result = run(gateway, "--titles", str(tmp_path))
    assert result.exit_code == 1
    assert "items.parquet is missing" in result.stderr


def test_budgets():
    assert parse_budget("save=0.7, click=3") == {"save": 0.7, "click": 3.0}
    for text in ("save", "save=", "save=much", ""):
        with pytest.raises(InvalidRequest, match="allowed: OUTCOME=WEIGHT"):
            parse_budget(text)


def test_a_release_dir_is_a_numbered_folder(tmp_path):
    with pytest.raises(InvalidRequest, match="a numbered release folder"):
        open_release_dir(tmp_path / "display")
