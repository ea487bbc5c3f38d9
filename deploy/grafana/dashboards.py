"""Grafana's dashboards, as a list of panels; writes deploy/grafana/dashboards/*.json.

python deploy/grafana/dashboards.py

Names and labels of metrics are held to the running stack by tests/e2e/test_observability.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"

SOURCE = {"type": "prometheus", "uid": "prometheus"}

WIDTH, HEIGHT = 24, 8
"""Of Grafana's grid, in its units, and of a panel."""

SECONDS, SHARE, RATE, COUNT, BYTES = "s", "percentunit", "reqps", "short", "bytes"


@dataclass(frozen=True)
class Panel:
    """One panel: `queries` are (PromQL, legend), `says` is what a reader should make of it, `width` of 24."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    says: str = ""
    width: int = 8
    kind: str = "timeseries"


@dataclass(frozen=True)
class Dashboard:
    """Panels from left to right, rows as wide as they fill."""

    uid: str
    title: str
    panels: Sequence[Panel]


def state(title: str, expression: str, legend: str, says: str, unit: str = COUNT) -> Panel:
    """The newest value, large."""
    return Panel(title, unit, [(expression, legend)], says, width=4, kind="stat")


SERVING = Dashboard(
    "pinrec-serving",
    "PinRec: serving",
    [
        state("Gateways ready", "sum(pinrec_gateway_ready)", "", "Canaries come back from all four stages."),
        state("Tritons ready", "sum(pinrec_keeper_ready)", "", "By their keepers, whose canaries stay on the host."),
        state("Release", "max(pinrec_gateway_active_release)", "", "That requests are admitted for."),
        state("Release's age", "pinrec:release:age_seconds", "", "Since its newest event.", SECONDS),
        state("Errors, 1 h", "pinrec:request_errors:ratio1h", "", "The objective is 0.1 %.", SHARE),
        state("Alerts", 'count(ALERTS{alertstate="firing"}) or vector(0)', "", "docs/sre.md has an entry for each."),
        Panel(
            "Requests",
            RATE,
            [("sum by (code) (rate(pinrec_gateway_request_seconds_count[5m]))", "{{code}}")],
            "One for each user, batches too.",
        ),
        Panel(
            "Latency",
            SECONDS,
            [("pinrec:request_seconds:p50_5m", "p50"), ("pinrec:request_seconds:p99_5m", "p99")],
            "Answered requests, in the gateway.",
        ),
        Panel(
            "Refused and in flight",
            COUNT,
            [
                ("sum by (priority) (rate(pinrec_gateway_shed_total[5m]))", "{{priority}} refused a second"),
                ("sum(pinrec_gateway_in_flight)", "in flight"),
                ("sum(pinrec_gateway_places)", "places"),
            ],
            "Places follow the ensemble's latency. Interactive refusals mean that capacity is short.",
        ),
        Panel("Time in each stage, p50", SECONDS, [("pinrec:stage_seconds:p50_5m", "{{stage}}")]),
        Panel(
            "Time in each stage, p99",
            SECONDS,
            [("pinrec:stage_seconds:p99_5m", "{{stage}}")],
            "`triton` is its queues and transport, `gateway` the gateway's own.",
        ),
        Panel(
            "Wait for each stage, mean",
            SECONDS,
            [("pinrec:stage_queue_seconds:mean5m", "{{model}}")],
            "What to scale on: it grows before latency hurts.",
        ),
        Panel("Requests in a batch, mean", COUNT, [("pinrec:stage_batch_size:mean5m", "{{model}}")]),
        Panel(
            "Busy share of each stage",
            SHARE,
            [("pinrec:stage_busy:ratio5m", "{{model}} {{instance}}")],
            "1 = its one instance computes all the time, one request of a batch after another counted.",
        ),
        Panel("Degraded answers", SHARE, [("pinrec:degraded:ratio5m", "{{reason}}")]),
        Panel(
            "Retries and repairs",
            COUNT,
            [
                ("sum by (result) (increase(pinrec_gateway_retries_total[1h]))", "retries, {{result}}"),
                ("sum by (stage) (increase(pinrec_keeper_repairs_total[1h]))", "repairs, {{stage}}"),
            ],
            "Of the last hour.",
        ),
        Panel(
            "Clients",
            RATE,
            [("sum by (client, result) (rate(pinrec_client_calls_total[5m]))", "{{client}} {{result}}")],
            "Where there is a tokens file.",
        ),
    ],
)

ANSWERS = Dashboard(
    "pinrec-answers",
    "PinRec: answers",
    [
        Panel(
            "Candidates by outcome",
            SHARE,
            [("pinrec:outcome_share:ratio5m", "{{outcome}}")],
            "What budgets ask for, and so what should be served.",
        ),
        Panel(
            "Under-fill",
            SHARE,
            [("pinrec:underfill:ratio5m", "{{outcome}}")],
            "From popular lists, since retrieval came up short.",
        ),
        Panel("Cold starts", SHARE, [("pinrec:cold_start:ratio5m", "")], "Answers for users without a stored event."),
        Panel(
            "Compression, mean",
            COUNT,
            [("pinrec:compression:mean5m", "")],
            "Embeddings generated for each one kept. A step means another model.",
        ),
        Panel(
            "Age of a history's newest event",
            SECONDS,
            [("pinrec:history_age_seconds:p50_5m", "p50")],
            "Of those users who were asked for.",
        ),
        Panel("Canaries", RATE, [("sum by (code) (rate(pinrec_gateway_canary_total[5m]))", "{{code}}")]),
    ],
)

STORES = Dashboard(
    "pinrec-stores",
    "PinRec: signals and items",
    [
        state("Realtime view", "max(pinrec_signals_store_problem)", "", "0 = it can be read and written."),
        state("Batch view's age", "pinrec:batch_view:age_seconds", "", "Since its newest event.", SECONDS),
        state("Batch view", "max(pinrec_signals_batch_view_version)", "", "Version in use."),
        state("Items added", "sum(pinrec_items_added)", "", "Since the log began, in their newest state."),
        state("Items deleted", "sum(pinrec_items_deleted)", "", "The same."),
        state("Item followers", "sum(pinrec_items_followers)", "", "Two for each open release."),
        Panel("Events", RATE, [("sum by (code) (rate(pinrec_signals_events_total[5m]))", "{{code}}")]),
        Panel(
            "Until an append is durable",
            SECONDS,
            [("pinrec:append_seconds:p99_5m", "p99")],
            "One synced write takes all that wait.",
        ),
        Panel(
            "Age of events when durable",
            SECONDS,
            [("pinrec:event_lag_seconds:p50_5m", "p50"), ("pinrec:event_lag_seconds:p99_5m", "p99")],
            "How far histories lag behind what users do.",
        ),
        Panel(
            "Histories",
            RATE,
            [
                ("sum(rate(pinrec_signals_histories_total[5m]))", "all"),
                ("sum(rate(pinrec_signals_cold_histories_total[5m]))", "without an event"),
                ("sum(rate(pinrec_signals_degraded_histories_total[5m]))", "of the batch view alone"),
            ],
        ),
        Panel("Item changes", RATE, [("sum by (kind) (rate(pinrec_items_changes_total[5m]))", "{{kind}}")]),
        Panel(
            "Kafka",
            COUNT,
            [
                ("sum(pinrec_ingest_lag)", "messages that wait"),
                ("sum(increase(pinrec_ingest_dead_letters_total[1h]))", "dead letters in an hour"),
                ("sum(increase(pinrec_ingest_failures_total[1h]))", "failed batches in an hour"),
            ],
        ),
        Panel("CPU", COUNT, [("rate(process_cpu_seconds_total[5m])", "{{job}} {{instance}}")], "Cores."),
        Panel("Memory", BYTES, [("process_resident_memory_bytes", "{{job}} {{instance}}")]),
        Panel(
            "Calls",
            RATE,
            [("sum by (job, method, code) (rate(pinrec_rpc_seconds_count[5m]))", "{{job}} {{method}} {{code}}")],
        ),
    ],
)

DASHBOARDS = (SERVING, ANSWERS, STORES)


def model(dashboard: Dashboard) -> dict[str, Any]:
    """What Grafana reads."""
    panels, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(dashboard.panels, start=1):
        if x + panel.width > WIDTH:
            x, y = 0, y + height
        height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
        panels.append(_panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["pinrec"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": place,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for place, (expression, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    """Write each dashboard."""
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.uid}.json").write_text(json.dumps(model(dashboard), indent=1) + "\n")


if __name__ == "__main__":
    main()
