"""`pinrec recommend`: one user's candidates, from a running gateway or computed in this process."""

from __future__ import annotations

import json
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict

from pinrec_core.errors import InvalidRequest
from pinrec_core.release import Release, open_release
from services.cli.options import INT64
from services.cli.titles import read_titles, release_titles
from services.common.client import connect
from services.proto.candidates_pb2 import Candidate, GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub

TITLE_CHARS = 44
LOCAL_DEADLINE_MS = 600_000
"""In this process nobody waits in line: long enough for any laptop."""

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.option("--user", "user_id", required=True, type=INT64, help="User id; one nobody has seen is a cold start.")
@click.option("--surface", required=True, help="Where the candidates will be shown, e.g. home.")
@click.option("--budget", required=True, metavar="OUTCOME=WEIGHT,...", help="E.g. save=0.7,click=0.3; normalized.")
@click.option(
    "-n", "--num-candidates", default=20, show_default=True, type=click.IntRange(1, 2**32 - 1), help="How many."
)
@click.option("--query", "search_query", default="", metavar="TEXT", help="Search query, on surfaces that take one.")
@click.option(
    "--exclude", "exclude_item_ids", multiple=True, type=INT64, metavar="ID", help="Leave out; repeat for several."
)
@click.option("--include-seen", is_flag=True, help="Also return items of the user's own history.")
@click.option("--explain", is_flag=True, help="Say which step, target offset and embedding found each item.")
@click.option("--request-id", default="", help="Echoed; seeds a stochastic allocation. Made up if empty.")
@click.option("--address", default="localhost:8500", show_default=True, metavar="HOST:PORT", help="The gateway.")
@click.option(
    "--timeout",
    "timeout_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for the gateway.",
)
@click.option("--release-dir", type=FOLDER, help="Compute here, with this release (RELEASES/<n>), without a gateway.")
@click.option("--data", "data_dir", type=FOLDER, help="With --release-dir: the event log of histories.")
@click.option(
    "--titles",
    "titles_dir",
    type=FOLDER,
    help="A data folder, or RELEASES/<n>/display; with --release-dir its own by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print protobuf's JSON (64-bit integers are strings).")
def recommend(
    budget: str,
    address: str,
    timeout_s: float,
    release_dir: Path | None,
    data_dir: Path | None,
    titles_dir: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Ask for one user's candidates and print them.

    \b
    pinrec recommend --user 12 --surface home --budget save=0.7,click=0.3
    pinrec recommend --user 12 --surface search --query "space opera" --budget save=1 --explain
    pinrec recommend --user 12 --surface home --budget save=1 --release-dir work/releases/1 --data work/data
    """
    request = GetCandidatesRequest(budget=parse_budget(budget), **fields)
    if release_dir is not None:
        reply = in_process(request, release_dir, data_dir)
    else:
        with connect(address, CandidateServiceStub) as stub:
            reply = stub.GetCandidates(request, timeout=timeout_s)
    if as_json:
        click.echo(json.dumps(to_json(reply), indent=1))
        return
    item_ids = [candidate.item_id for candidate in reply.candidates]
    titles: dict[int, str] = {}
    if titles_dir is not None:
        titles = read_titles(titles_dir, item_ids)
    elif release_dir is not None:
        titles = release_titles(release_dir, item_ids)
    for line in table_lines(request, reply, titles):
        click.echo(line)


def parse_budget(text: str) -> dict[str, float]:
    """`save=0.7,click=0.3` -> weights by outcome. Raises InvalidRequest; the gateway checks names and values."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        outcome, _, weight = part.partition("=")
        try:
            weights[outcome.strip()] = float(weight)
        except ValueError as error:
            raise InvalidRequest("--budget", text, "OUTCOME=WEIGHT,... like save=0.7,click=0.3") from error
    return weights


def in_process(request: GetCandidatesRequest, release_dir: Path, data_dir: Path | None) -> GetCandidatesResponse:
    """The same answer without a stack: the gateway's own checks and reply around `pinrec_core.recommend`."""
    from pinrec_core.messages import gather
    from pinrec_core.recommend import Stages
    from pinrec_core.recommend import recommend as run_stages
    from services.gateway.reply import PathOutput, build_reply
    from services.gateway.resolve import resolve

    release = open_release_dir(release_dir)
    request_id = request.request_id or uuid.uuid4().hex
    resolved = resolve(request, release, request_id, int(time.time() * 1000), remaining_ms=LOCAL_DEADLINE_MS)
    with tempfile.TemporaryDirectory(prefix="pinrec-") as scratch:
        batch_view = None
        if data_dir is not None:
            from pinrec_core.batch_job.job import build_batch_view

            batch_view = Path(scratch) / "batch_view"
            build_batch_view(data_dir, batch_view)
        stages = Stages.open(release, batch_view)
        start = time.monotonic()
        made = run_stages([resolved], stages)[0]
    output = gather(PathOutput, made.candidates, made.generated, made.signals)
    reply = build_reply(output, request, release, request_id)
    reply.stage_latency_ms["total"] = (time.monotonic() - start) * 1000
    return reply


def open_release_dir(folder: Path) -> Release:
    """Open RELEASES/<n>. Raises InvalidRequest if the folder's name is no release number."""
    folder = folder.resolve()
    if not folder.name.isdigit():
        raise InvalidRequest("--release-dir", folder.name, "a numbered release folder such as work/releases/1")
    return open_release(folder.parent, int(folder.name), verify=False)


def to_json(reply: GetCandidatesResponse) -> dict[str, Any]:
    """Protobuf's canonical JSON with the proto's field names, zeros included."""
    fields: dict[str, Any] = MessageToDict(
        reply, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return fields


def table_lines(request: GetCandidatesRequest, reply: GetCandidatesResponse, titles: Mapping[int, str]) -> list[str]:
    """What the terminal shows: a line about the request, one about the answer, then a row a candidate."""
    notes = ["cold start"] * reply.cold_start + [f"degraded: {reply.degraded_reason}"] * reply.degraded
    about = [
        f"user {request.user_id} on {request.surface}",
        f"release {reply.release}",
        f"history {reply.history_length} ({reply.realtime_events} realtime)",
        f"{reply.embeddings_generated} embeddings, {reply.embeddings_kept} kept",
        f"{reply.stage_latency_ms['total']:.1f} ms",
        *notes,
    ]
    width = max([5, *(len(c.outcome) for c in reply.candidates)])
    title_width = TITLE_CHARS if titles else 0
    head = f"{'#':>4}  {'item':>20}  {'title':<{title_width}.{title_width}}  {'outcome':<{width}}  {'score':>6}  why"
    rows = [
        f"{rank:>4}  {c.item_id:>20}  {titles.get(c.item_id, ''):<{title_width}.{title_width}}  "
        f"{c.outcome:<{width}}  {c.score:>6.3f}  {_why(c)}"
        for rank, c in enumerate(reply.candidates, start=1)
    ]
    return [" | ".join(about), "", *(line.rstrip() for line in (head, *rows))]


def _why(candidate: Candidate) -> str:
    if candidate.filled:
        return "popular"
    if not candidate.HasField("why"):
        return ""
    why = candidate.why
    return f"step {why.step}, offset {why.target_offset}, embedding {why.embedding_index}"
