"""A real Prometheus scrapes the running stack: what panels, alerts and rules name is there, and panels show it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server

from services.common import metrics
from services.proto.candidates_pb2 import GetCandidatesRequest
from services.proto.signals_pb2 import AppendEventsRequest, Event
from tests.conftest import eventually
from tests.ports import free_port
from tests.promql import DEPLOY, Expression, panels, rules

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROMETHEUS_OWN = {"up", "ALERTS"}
ON_EVERY_SERIES = {"job", "instance"}
NUM_TARGETS = 6
T0 = 1_700_000_000_000
CLASSES = [one for name, one in vars(metrics).items() if name.endswith("Metrics")]


@dataclass
class Prometheus:
    """The HTTP API of a running one."""

    url: str
    _labels: dict[str, set[str]] = field(default_factory=dict)

    def get(self, path: str, **parameters: str):
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as reply:
            return json.load(reply)["data"]

    def query(self, expression: str) -> list[dict]:
        return self.get("query", query=expression)["result"]

    def labels(self, name: str) -> set[str]:
        """Of a metric's series, all of them together; empty if it has none."""
        if not self._labels.get(name):
            found = self.get("series", **{"match[]": f'{{__name__="{name}"}}'})
            self._labels[name] = {label for one in found for label in one}
        return self._labels[name]

    def exported(self) -> set[str]:
        """Names of all series that the targets tell of, even where none has a sample."""
        parts = {"counter": ("", "_total"), "histogram": ("_bucket", "_count", "_sum")}
        told = self.get("targets/metadata")
        return {one["metric"] + part for one in told for part in parts.get(one["type"], ("",))}


@pytest.fixture(scope="module")
def prometheus(live, requires_program, tmp_path_factory) -> Iterator[Prometheus]:
    """Scrapes the live stack, and what a Kafka consumer and a service with a tokens file would tell, every second."""
    requires_program("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    beside = CollectorRegistry()
    metrics.IngestMetrics(beside).lag.labels("0").set(3)
    metrics.AccessMetrics(beside).calls.labels("ranker", "admitted").inc()
    server, _ = start_http_server(0, addr="127.0.0.1", registry=beside)
    ports = {
        "gateway": live.stack.gateway_metrics_port,
        "signals": live.stack.signals_metrics_port,
        "items": live.stack.items_metrics_port,
        "triton": live.stack.triton_metrics_port,
        "keeper": live.stack.triton_health_port,
        "ingest": server.server_port,
    }
    write_config(folder, ports)
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with ExitStack() as running, (folder / "log").open("w") as log:
        running.callback(server.server_close)
        running.callback(server.shutdown)
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        running.callback(process.wait)
        running.callback(process.terminate)
        one = Prometheus(f"http://{address}")
        assert eventually(lambda: serves_rules(one)), (folder / "log").read_text()
        eventually(lambda: shows_traffic(one, live), tries=100)
        yield one


def write_config(folder: Path, ports: dict[str, int]) -> None:
    """As deploy/prometheus/prometheus.yml, with these targets and no patience."""
    shutil.copytree(DEPLOY / "prometheus" / "rules", folder / "rules")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    targets = [{"targets": [f"127.0.0.1:{port}"], "labels": {"job": job}} for job, port in ports.items()]
    config["scrape_configs"] = [{"job_name": "pinrec", "static_configs": targets}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))


def serves_rules(one: Prometheus) -> bool:
    """Whether each target was scraped and each rule evaluated, both without an error."""
    try:
        targets = one.get("targets")["activeTargets"]
        evaluated = [rule for group in one.get("rules")["groups"] for rule in group["rules"]]
    except urllib.error.URLError:
        return False
    scraped = [target["health"] == "up" for target in targets]
    return len(scraped) == NUM_TARGETS and all(scraped) and all(rule["health"] == "ok" for rule in evaluated)


def shows_traffic(one: Prometheus, live) -> bool:
    """Whether rates see both outcomes and every panel shows something, with some more requests each time."""
    use_the_stack(live)
    return len(one.query("pinrec:outcome_share:ratio5m > 0")) > 1 and not silent_panels(one)


def use_the_stack(live) -> None:
    """A known user, a new one, and an event."""
    new = live.new_user()
    for user in (11, new):
        request = GetCandidatesRequest(user_id=user, surface="home", budget={"save": 1, "click": 1}, num_candidates=20)
        live.candidates.GetCandidates(request, timeout=60)
    event = Event(user_id=new, item_id=1, item_type="pin", action="save", surface="home", timestamp_ms=T0)
    live.signals.AppendEvents(AppendEventsRequest(events=[event]), timeout=60)


def silent_panels(one: Prometheus) -> list[str]:
    """Queries of panels that show nothing, though each metric below them has a series."""
    recorded = {rule.place: rule for rule in rules("record")}
    unused = [panel for panel in panels() if not one.query(panel.text)]
    return [f"{p.place}: {p.text}" for p in unused if all(one.labels(name) for name in below(p, recorded))]


@pytest.fixture(scope="module")
def recorded() -> dict[str, Expression]:
    return {rule.place: rule for rule in rules("record")}


@pytest.fixture(scope="module")
def known_labels() -> dict[str, tuple[str, ...]]:
    """Labels of our own metrics, which have no series before something happened for the first time."""
    registry = CollectorRegistry()
    made = [vars(one(registry)).values() for one in CLASSES]
    return {text: one._labelnames for group in made for one in group for text in registry._get_names(one)}


def test_rules_and_panels_name_only_what_the_stack_exports(prometheus, recorded, known_labels):
    exported = prometheus.exported()
    wrong = []
    for one in (*rules("record"), *rules("alert"), *panels()):
        for name, matched in one.metrics.items():
            if name not in exported | set(recorded) | PROMETHEUS_OWN:
                wrong.append(f"{one.place}: no metric {name}")
            labels = prometheus.labels(name) | set(known_labels.get(name, ())) | ON_EVERY_SERIES
            labels |= recorded[name].grouping if name in recorded else set()
            if name not in PROMETHEUS_OWN and matched - labels:
                wrong.append(f"{one.place}: {name} has no label {matched - labels}")
        grouped = one.grouping - {"le"} - ON_EVERY_SERIES
        has = set().union(*(prometheus.labels(n) | set(known_labels.get(n, ())) for n in one.metrics))
        if grouped - has:
            wrong.append(f"{one.place}: grouped by {grouped - has}, which none of its metrics has")
    assert wrong == []


def test_each_panel_shows_something(prometheus):
    """Unless one of the metrics below it has not happened yet, such as a retry. What a legend names is there."""
    assert silent_panels(prometheus) == []
    for one in panels():
        for series in prometheus.query(one.text):
            assert set(re.findall(r"{{(\w+)}}", one.legend)) <= set(series["metric"]), one.place


def below(one: Expression, recorded: dict[str, Expression]) -> set[str]:
    """The stack's own metrics that an expression is made of, through recording rules."""
    names = set(one.metrics)
    return {n for name in names for n in (below(recorded[name], recorded) if name in recorded else {name})}


def test_a_wrong_name_would_be_found(prometheus):
    assert "pinrec_gateway_shed_total" in prometheus.exported(), "even while nothing was refused"
    assert "pinrec_gateway_sheds_total" not in prometheus.exported()
    assert prometheus.labels("nv_inference_count") >= {"model", "version", "job", "instance"}
    assert prometheus.labels("pinrec_gateway_sheds_total") == set()


def test_what_was_asked_is_what_is_counted(prometheus):
    [share] = prometheus.query('pinrec:outcome_share:ratio5m{outcome="save"}')
    assert 0 < float(share["value"][1]) < 1
    batches = {series["metric"]["model"] for series in prometheus.query("pinrec:stage_batch_size:mean5m >= 1")}
    assert batches == {"fetch_signals", "embed_items", "generate", "retrieve"}
    assert prometheus.query('ALERTS{severity="page", alertstate="firing"}') == []
