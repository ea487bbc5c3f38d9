"""`pinrec demo`: the whole story on one machine, told with the other verbs.

An event log, a trained model, a published release, the running stack, and one user's candidates as the budget moves and
as new events arrive. Every step prints the command that it runs, so that it can be repeated by hand.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from pinrec_core.errors import InvalidRequest, Unavailable
from pinrec_core.release import Release, open_release, serving_state
from services.cli.titles import release_titles
from services.common.client import connect
from services.common.probe import serves
from services.proto.candidates_pb2 import GetCandidatesRequest, GetCandidatesResponse
from services.proto.candidates_pb2_grpc import CandidateServiceStub

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = "localhost:8500"
START_TIMEOUT_S = 120
TITLE_CHARS = 38
LATENCY_REQUESTS = 200
MARK = ".made-by-pinrec-demo"
"""File in a work folder that says that all of it may be deleted."""


@dataclass(frozen=True)
class Ask:
    """One request of the story, shown under two opposite budgets."""

    surface: str
    search_query: str = ""


@dataclass(frozen=True)
class Story:
    """What the demo tells with one data set."""

    make_data: tuple[str, ...]
    """The `pinrec data` verb and its arguments; the destination folder is appended."""
    config: str
    user_id: int
    budgets: tuple[dict[str, float], dict[str, float]]
    asks: tuple[Ask, ...]
    new_titles: tuple[str, ...]
    """Words that the titles of the appended items start with: a taste that the user has not shown."""
    new_action: str


STORIES = {
    "movielens": Story(
        make_data=("movielens-100k",),
        config="configs/demo.toml",
        user_id=308,
        budgets=({"watched": 1.0}, {"loved": 1.0}),
        asks=(Ask("home"),),
        new_titles=("Lion King, The", "Aladdin", "Beauty and the Beast", "Toy Story", "Cinderella", "Dumbo", "Bambi"),
        new_action="loved",
    ),
    "synthetic": Story(
        make_data=("synthetic", "--users", "3000", "--items", "2000", "--events", "150000"),
        config="configs/synthetic.toml",
        user_id=7,
        budgets=({"click": 1.0}, {"save": 1.0}),
        asks=(Ask("home"), Ask("related"), Ask("search", "mossy lantern")),
        new_titles=("mossy lantern",),
        new_action="save",
    ),
}


@click.command()
@click.option(
    "--world", type=click.Choice(list(STORIES)), default="movielens", show_default=True, help="Which event log."
)
@click.option(
    "--work",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for all it makes, new or a demo's.",
)
@click.option("--stay", is_flag=True, help="Keep what --work already has, print calls to paste, serve until Ctrl-C.")
def demo(world: str, work: Path, stay: bool) -> None:
    """Train, publish, serve and ask: the whole path on this machine, in a few minutes.

    Gets or makes the event log of --world, trains its configuration, prints the offline metrics, publishes a release,
    starts signals, Triton and gateway, shows a user's history and candidates under two opposite budgets, appends
    events, asks again, and prints the latency of a few hundred requests.
    """
    story, paths = STORIES[world], Paths(work)
    if not (stay and (paths.releases / "serving.json").exists()):
        clear(work)
        prepare(story, paths)
    if stay:
        print_calls(story, paths)
        sys.exit(subprocess.call(pinrec(*paths.up)))
    with running_stack(paths):
        tell(story, paths)
    click.echo("\nstack stopped")


def clear(work: Path) -> None:
    """Make `work` an empty folder of ours. Raises InvalidRequest if it holds what no demo made."""
    if work.exists() and any(work.iterdir()) and not (work / MARK).exists():
        raise InvalidRequest("--work", str(work), "a new folder: this one holds files of others, and is deleted first")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / MARK).touch()


@dataclass(frozen=True)
class Paths:
    """What the demo makes under its work folder."""

    work: Path

    @property
    def data(self) -> Path:
        """The event log."""
        return self.work / "data"

    @property
    def run(self) -> Path:
        """The trained model."""
        return self.work / "run"

    @property
    def releases(self) -> Path:
        """Published releases."""
        return self.work / "releases"

    @property
    def batch_view(self) -> Path:
        """The compiled histories."""
        return self.work / "batch_view"

    @property
    def up(self) -> tuple[str, ...]:
        """Arguments of `pinrec` that start the stack."""
        signals = str(self.work / "signals")
        view = str(self.batch_view)
        return ("up", "--releases", str(self.releases), "--signals-data", signals, "--batch-view", view)


def prepare(story: Story, paths: Paths) -> None:
    """From nothing to an active release and a batch view."""
    data, run, releases = str(paths.data), str(paths.run), str(paths.releases)
    config = str(ROOT / story.config)
    step("an event log", "data", *story.make_data, data)
    step("train", "train", "--data", data, "--config", config, "--run", run)
    step("measure on users it has not seen", "evaluate", "--run", run, "--data", data)
    step("publish", "export", "--run", run, "--data", data, "--releases", releases)
    step("compile the histories", "data", "batch-view", data, str(paths.batch_view))


def step(title: str, *arguments: str) -> None:
    """Say what comes, then run one verb; its failure ends the demo."""
    start = time.monotonic()
    click.secho(f"\n== {title}", bold=True)
    click.echo(f"$ pinrec {shlex.join(arguments)}")
    if code := subprocess.call(pinrec(*arguments)):
        sys.exit(code)
    click.echo(f"   ({time.monotonic() - start:.0f} s)")


def pinrec(*arguments: str) -> list[str]:
    """Command line of a verb, in this interpreter."""
    return [sys.executable, "-m", "services.cli.main", *arguments]


@contextmanager
def running_stack(paths: Paths) -> Iterator[None]:
    """`pinrec up` as a child, its log in a file; stopped as Ctrl-C would."""
    click.secho("\n== serve", bold=True)
    click.echo(f"$ pinrec {shlex.join(paths.up)}")
    log_path = paths.work / "up.log"
    with log_path.open("w") as log, subprocess.Popen(pinrec(*paths.up), stdout=log, stderr=log) as up:
        try:
            start = time.monotonic()
            wait_until_serving(up, log_path)
            click.echo(f"   (ready after {time.monotonic() - start:.1f} s; log in {log_path})")
            yield
        finally:
            up.terminate()
            up.wait(timeout=60)


def wait_until_serving(up: subprocess.Popen[bytes], log_path: Path) -> None:
    """Until the gateway's health says SERVING. Raises Unavailable with the log's end if the stack dies or is late."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and up.poll() is None:
        if serves(GATEWAY):
            return
        time.sleep(0.2)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
    raise Unavailable(f"the stack did not start; the end of {log_path}:\n{tail}")


def tell(story: Story, paths: Paths) -> None:
    """The part with a running stack."""
    release = open_release(paths.releases, serving_state(paths.releases).active, verify=False)
    history(story, paths, "recent history")
    for ask in story.asks:
        show_budgets(story, release, ask)
    show_new_events(story, paths, release)
    show_latency(story)


def history(story: Story, paths: Paths, title: str) -> None:
    """The user's newest events, by the verb that shows them."""
    user = str(story.user_id)
    step(f"user {user}: {title}", "events", "history", "--user", user, "-n", "10", "--releases", str(paths.releases))


def show_budgets(story: Story, release: Release, ask: Ask) -> None:
    """The same request under two opposite budgets, side by side."""
    query = f", search query {ask.search_query!r}" if ask.search_query else ""
    click.secho(f"\n== user {story.user_id} on surface {ask.surface}{query}: two opposite budgets", bold=True)
    replies = [candidates(story, ask, budget) for budget in story.budgets]
    left_lines, right_lines = (candidate_lines(release, reply) for reply in replies)
    headings = [(str(story.budgets[0]), str(story.budgets[1]))]
    for left, right in headings + list(zip(left_lines, right_lines, strict=False)):
        click.echo(f"  {left:<{TITLE_CHARS + 20}}  {right}")
    ids = [{c.item_id for c in reply.candidates} for reply in replies]
    click.echo(f"  shared by both lists: {len(ids[0] & ids[1])} of {len(ids[0])}")


def show_new_events(story: Story, paths: Paths, release: Release) -> None:
    """Append a new taste, ask again, and say what changed and how soon."""
    ask, budget = story.asks[0], story.budgets[1]
    before = candidates(story, ask, budget)
    items = new_items(story, release)
    arguments = [text for item in items for text in ("--item", str(item))]
    user = str(story.user_id)
    step(
        f"user {user}: a new taste",
        "events", "append", "--user", user, *arguments, "--action", story.new_action, "--surface", ask.surface,
    )  # fmt: skip
    start = time.perf_counter()
    after = candidates(story, ask, budget)
    elapsed_ms = 1000 * (time.perf_counter() - start)
    history(story, paths, "the history of the next request")
    known = {c.item_id for c in before.candidates}
    titles = release_titles(release.path, [c.item_id for c in after.candidates])
    fresh = [titles.get(c.item_id, str(c.item_id)) for c in after.candidates if c.item_id not in known]
    click.secho("\n== what changed", bold=True)
    click.echo(f"  realtime events in the history: {before.realtime_events} -> {after.realtime_events}, ")
    click.echo(f"  seen by the first request after the acknowledgement, answered in {elapsed_ms:.0f} ms")
    click.echo(f"  new among the {len(after.candidates)} candidates under {budget}: {len(fresh)}")
    for title in fresh[:10]:
        click.echo(f"    {title[:TITLE_CHARS]}")


def new_items(story: Story, release: Release) -> list[int]:
    """Items whose title starts with one of the story's words, in the order of the words."""
    titles = release_titles(release.path, np.asarray(release.items.ids).tolist())
    found = [item for word in story.new_titles for item, title in titles.items() if title.startswith(word)]
    return found[:6]


def show_latency(story: Story) -> None:
    """p50 and p99 of sequential requests, as a client on this machine sees them."""
    milliseconds = []
    for number in range(LATENCY_REQUESTS):
        start = time.perf_counter()
        candidates(story, story.asks[number % len(story.asks)], story.budgets[number % 2])
        milliseconds.append(1000 * (time.perf_counter() - start))
    p50, p99 = np.percentile(milliseconds, [50, 99])
    click.secho(f"\n== {LATENCY_REQUESTS} requests, one at a time", bold=True)
    click.echo(f"  p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def candidates(story: Story, ask: Ask, budget: dict[str, float], count: int = 15) -> GetCandidatesResponse:
    """One GetCandidates call."""
    request = GetCandidatesRequest(
        user_id=story.user_id,
        surface=ask.surface,
        budget=budget,
        num_candidates=count,
        search_query=ask.search_query,
    )
    with connect(GATEWAY, CandidateServiceStub) as stub:
        reply: GetCandidatesResponse = stub.GetCandidates(request, timeout=10)
    return reply


def candidate_lines(release: Release, reply: GetCandidatesResponse) -> list[str]:
    """One line a candidate: title, outcome, score."""
    titles = release_titles(release.path, [c.item_id for c in reply.candidates])
    return [
        f"{titles.get(c.item_id, str(c.item_id))[:TITLE_CHARS]:<{TITLE_CHARS}} {c.outcome:<8} {c.score:5.2f}"
        + (" (filled)" if c.filled else "")
        for c in reply.candidates
    ]


def print_calls(story: Story, paths: Paths) -> None:
    """Calls to paste into another terminal."""
    ask = story.asks[-1]
    budget = ",".join(f"{name}={weight:g}" for name, weight in {**story.budgets[0], **story.budgets[1]}.items())
    query = f" --query {ask.search_query!r}" if ask.search_query else ""
    json_budget = ", ".join(f'"{name}": {weight:g}' for budget in story.budgets for name, weight in budget.items())
    titles = paths.releases / str(serving_state(paths.releases).active) / "display"
    body = f'{{"user_id": {story.user_id}, "surface": "{story.asks[0].surface}", "budget": {{{json_budget}}}'
    lines: Sequence[str] = (
        "once the stack is ready, from another terminal:",
        f"  .venv/bin/pinrec recommend --user {story.user_id} --surface {ask.surface}{query} --budget {budget}"
        f" --titles {titles}",
        f"  .venv/bin/pinrec events history --user {story.user_id} --releases {paths.releases}",
        "and with any gRPC client that speaks reflection, e.g. grpcurl:",
        f"  grpcurl -plaintext -d '{body}, \"num_candidates\": 10}}'"
        f" {GATEWAY} pinrec.v1.CandidateService/GetCandidates",
        "",
    )
    for line in lines:
        click.echo(line)
