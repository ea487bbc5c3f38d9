"""Who calls whom in the manifests: ports, addresses and network policies."""

import re
from pathlib import Path

import pytest
import yaml

from deploy.k8s.rendered import K8S, ROOT, labels
from deploy.k8s.rules import OBJECT, rules
from services.cli.up import Stack as Up
from tests.contract.manifests import STACKS, each_container, options, stack

every_stack = pytest.mark.parametrize("name", STACKS)


def test_every_command_line_is_one_that_its_program_takes():
    for one in each_container():
        if one.words[:1] == ["python"]:
            options(one)


@every_stack
def test_ports_are_those_that_the_programs_listen_on(name):
    up, keeper = Up(Path(), Path(), None), {"triton": 8001, "triton-metrics": 8002, "keeper": 8003}
    assert (keeper["triton"], keeper["triton-metrics"]) == (up.triton_grpc_port, up.triton_metrics_port)
    for one in stack(name).serving():
        if one.spec["image"].startswith("pinrec/triton"):
            assert one.ports == keeper
            continue
        given = options(one) if one.is_ours else {}
        if "listen" in given:
            role = one.spec["name"]
            assert one.ports == {"grpc": getattr(up, f"{role}_port"), "metrics": getattr(up, f"{role}_metrics_port")}
            assert given["listen"] == f"0.0.0.0:{one.ports['grpc']}"
            assert int(given["metrics_port"]) == one.ports["metrics"]
            assert given["reflection"] is False


@every_stack
def test_every_address_is_a_service_that_the_policies_let_its_caller_reach(name):
    rendered = stack(name)
    for one in rendered.containers():
        said = " ".join([*one.words, *one.env.values()])
        for host, port in re.findall(r"(?:^|[=/ ])([a-z][a-z-]*):([0-9]{4})\b", said):
            if host == "localhost":
                assert int(port) in {
                    p for other in rendered.containers() if other.pod is one.pod for p in other.ports.values()
                }
                continue
            service = rendered.service(host)
            assert int(port) in [entry["port"] for entry in service["spec"]["ports"]], f"{one.name} calls {host}:{port}"
            [callee] = rendered.selected(service["spec"]["selector"])
            assert rendered.may_call(one.owner, callee, int(port)), f"{one.owner} -> {callee}:{port}"


@every_stack
def test_nobody_else_gets_in(name):
    rendered = stack(name)
    serving = set(rendered.pods) & {"serving", "signals", "items", "memory"}
    allowed = {
        ("serving", 8500): {"pinrec/gateway": "allow"},
        ("signals", 8600): {"pinrec/signals": "allow"},
        ("items", 8700): {"pinrec/items": "allow"},
    }
    for owner in serving:
        ports = {port for one in rendered.containers() if one.owner == owner for port in one.ports.values()}
        for port in ports | {8000}:
            doors = rendered.doors(owner, port)
            metrics = [{"pinrec/metrics": "allow"}] if port in {9500, 9600, 9700, 8002, 8003} else []
            assert doors == ([allowed[owner, port]] if (owner, port) in allowed else metrics), f"{owner}:{port}"
    insiders = {caller for caller in rendered.pods if rendered.may_call(caller, "serving", 8001)}
    assert insiders == set(), "Triton of a serving pod is called inside the pod only"
    if "memory" in serving:
        assert {one for one in rendered.pods if rendered.may_call(one, "memory", 8001)} == {"serving"}
    denied = next(one for one in rendered.of("NetworkPolicy") if one["metadata"]["name"] == "default-deny")
    assert denied["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_namespaces_and_accounts_have_no_rights():
    for name in STACKS:
        assert not stack(name).of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")
        assert all(account["automountServiceAccountToken"] is False for account in stack(name).of("ServiceAccount"))
        for namespace in stack(name).of("Namespace"):
            assert labels(namespace)["pod-security.kubernetes.io/enforce"] == "restricted"


# --- who watches ---


def jobs() -> set[str]:
    """What the rules and dashboards call the processes."""
    targets = yaml.safe_load((ROOT / "deploy/prometheus/targets/compose.yml").read_text())
    return {one["labels"]["job"] for one in targets}


def test_prometheus_of_our_own_reaches_every_process_under_the_name_that_the_rules_know():
    rendered = stack("kafka")
    scraped = yaml.safe_load((K8S / "components/monitoring/prometheus.yml").read_text())["scrape_configs"]
    assert {one["job_name"] for one in scraped} == {*jobs(), "ingest"}
    reached = set()
    for [found] in (one["dns_sd_configs"] for one in scraped):
        for name in set(found["names"]) & rendered.named("Service"):
            [owner] = rendered.selected(rendered.service(name)["spec"]["selector"])
            assert rendered.may_call("prometheus", owner, found["port"])
            reached.add((owner, found["port"]))
    served = {"metrics", "triton-metrics", "keeper"}
    assert reached == {
        (one.owner, port) for one in rendered.serving() for name, port in one.ports.items() if name in served
    }


def test_the_operators_prometheus_knows_the_same_names():
    for name in ("gpu", "split"):
        [monitor] = stack(name).of("ServiceMonitor")
        label = monitor["spec"]["jobLabel"]
        services = [one for one in stack(name).of("Service") if label in labels(one)]
        known = {
            one["port"]: one.get("relabelings", [{}])[0].get("replacement") for one in monitor["spec"]["endpoints"]
        }
        found = {
            known[port["name"]] or labels(one)[label]
            for one in services
            for port in one["spec"]["ports"]
            if port["name"] in known
        }
        assert found == jobs()


def test_the_operator_gets_the_same_rules():
    assert yaml.safe_load(OBJECT.read_text()) == rules(), "make k8s-rules"
    [told] = stack("gpu").of("PrometheusRule")
    assert told["spec"] == rules()["spec"]


def test_rules_and_dashboards_come_along():
    maps = {one["metadata"]["name"].rpartition("-")[0]: one for one in stack("laptop").of("ConfigMap")}
    for name, folder in (("prometheus-rules", "prometheus/rules"), ("grafana-dashboards", "grafana/dashboards")):
        files = {path.name: path.read_text() for path in (ROOT / "deploy" / folder).iterdir()}
        assert maps[name]["data"] == files
        assert sum(map(len, files.values())) < 2**20, "what a ConfigMap holds"
