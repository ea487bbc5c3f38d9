"""Rules, alerts and dashboards as files: valid, tried, explained and used. The running stack has its own test."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.promql import DEPLOY, RULES, Expression, dashboards, panels, rules

PROMETHEUS = DEPLOY / "prometheus"
TRIALS = sorted((PROMETHEUS / "tests").glob("*.yml"))
SRE = Path(__file__).resolve().parents[2] / "docs" / "sre.md"


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_and_labels_by_hand():
    text = 'sum by (le, code) (rate(a_bucket{code=~"A|B", x!="c d"}[5m])) / on (job) b:c > 1e6 and e offset 1d'
    expression = Expression("", f"histogram_quantile(0.99, {text})")
    assert expression.metrics == {"a_bucket": {"code", "x"}, "b:c": set(), "e": set()}
    assert expression.grouping == {"le", "code", "job"}


@pytest.mark.parametrize("name", ["prometheus", "laptop"])
def test_configurations_and_rules_are_valid(requires_program, name):
    requires_program("promtool")
    promtool("check", "config", PROMETHEUS / f"{name}.yml")


@pytest.mark.parametrize("trial", TRIALS, ids=lambda path: path.stem)
def test_rules_say_what_was_worked_out_by_hand(requires_program, trial):
    requires_program("promtool")
    promtool("test", "rules", trial)


def test_each_alert_is_tried_both_ways():
    fires, silent = set(), set()
    for trial in TRIALS:
        for test in yaml.safe_load(trial.read_text())["tests"]:
            for case in test.get("alert_rule_test", ()):
                (fires if case["exp_alerts"] else silent).add(case["alertname"])
    names = {alert.place for alert in rules("alert")}
    assert (names - fires, names - silent, (fires | silent) - names) == (set(), set(), set())


def test_each_alert_has_an_entry_and_no_entry_lacks_its_alert():
    entries = re.findall(r"^\| `(Pinrec\w+)` \| (page|ticket) \|", SRE.read_text(), re.MULTILINE)
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    severities = [(r["alert"], r["labels"]["severity"]) for group in groups for r in group["rules"] if "alert" in r]
    assert sorted(entries) == sorted(severities)


def test_each_recording_rule_is_read():
    read = {name for one in (*panels(), *rules("alert"), *rules("record")) for name in one.metrics}
    assert {rule.place for rule in rules("record")} - read == set()


def test_the_files_are_what_the_list_of_panels_makes():
    made = dashboards()
    assert {path.name for path in made} == {path.name for path in (DEPLOY / "grafana" / "dashboards").iterdir()}
    for path, dashboard in made.items():
        assert json.loads(path.read_text()) == dashboard, "python deploy/grafana/dashboards.py writes it"


def test_panels_do_not_overlap_and_read_the_provisioned_source():
    [source] = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    for dashboard in dashboards().values():
        taken = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
            assert max(x for x, _ in cells) < 24
            assert not cells & taken
            taken |= cells
            assert panel["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_the_collectors_pipeline_names_what_is_configured():
    collector = yaml.safe_load((DEPLOY / "otel" / "collector.yml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])
