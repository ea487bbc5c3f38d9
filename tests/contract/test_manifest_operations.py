"""Stopping, spreading, scaling and switching on Kubernetes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy.k8s.rendered import K8S, Container, amount, labels
from pinrec_core.serving.contract import STAGES
from services.triton.command import TritonOptions
from tests.contract.manifests import STACKS, options, stack

APPEND_S = 20
KEEPER_S = 5
"""Seconds that the keeper may take for itself when it ends, beside its --linger and Triton's exit timeout."""

every_stack = pytest.mark.parametrize("name", STACKS)


# --- time to stop, memory, threads ---


def to_stop_s(one: Container) -> float:
    """Seconds from the first word to the end, at most, by a container's own options."""
    given = options(one)
    before = one.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if one.spec["image"].startswith("pinrec/triton"):
        own = TritonOptions(Path()).exit_timeout_s + KEEPER_S
    else:
        own = float(given.get("drain_s", APPEND_S))  # the consumer ends after the batch that it appends
    return before + float(given.get("linger_s") or 0) + own


@every_stack
def test_there_is_time_to_drain(name):
    rendered = stack(name)
    for owner in {one.owner for one in rendered.serving() if one.is_ours}:
        of_pod = [one for one in rendered.serving() if one.owner == owner]
        sidecars = sum(to_stop_s(one) for one in of_pod if one.is_sidecar)  # they end after the others
        grace = of_pod[0].pod["spec"]["terminationGracePeriodSeconds"]
        assert grace >= max(to_stop_s(one) for one in of_pod if not one.is_sidecar) + sidecars + 5, owner


@every_stack
def test_every_triton_has_shared_memory_and_as_many_threads_as_cores(name):
    tritons = [one for one in stack(name).serving() if one.spec["image"].startswith("pinrec/triton")]
    assert tritons
    for one in tritons:
        shm, limits = one.mount("/dev/shm"), one.spec["resources"]["limits"]
        assert shm["emptyDir"]["medium"] == "Memory"
        assert 256 * 2**20 <= amount(shm["emptyDir"]["sizeLimit"]) <= amount(limits["memory"]) / 4
        assert 1 <= int(one.env["PINREC_THREADS"]) <= amount(limits["cpu"])


@pytest.mark.parametrize("name", ["gpu", "split"])
def test_the_decoder_has_a_gpu_and_its_image(name):
    one = stack(name).container("serving/triton")
    assert one.spec["image"].startswith("pinrec/triton:")
    assert one.spec["resources"]["limits"]["nvidia.com/gpu"] == "1"
    [serving] = [one for one in stack(name).of("Deployment") if one["metadata"]["name"] == "serving"]
    assert serving["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0, "a surge would wait for a free GPU"


def test_split_puts_two_stages_on_memory_hosts():
    serving, memory = (options(stack("split").container(f"{owner}/triton")) for owner in ("serving", "memory"))
    assert serving["embed_items"] == serving["retrieve"] == "dns:///memory:8001"
    assert list(memory["models"]) == ["embed_items", "retrieve"]
    assert list(serving["models"]) == ["pinrec"]
    assert "nvidia.com/gpu" not in stack("split").container("memory/triton").spec["resources"]["limits"]


def test_replicas_spread_and_survive_a_drained_node():
    for name in ("gpu", "split", "hpa"):
        budgets = [one["spec"] for one in stack(name).of("PodDisruptionBudget")]
        for deployment in stack(name).of("Deployment"):
            pod = deployment["spec"]["template"]
            spread = {one["topologyKey"] for one in pod["spec"]["topologySpreadConstraints"]}
            assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
            assert any(one["selector"]["matchLabels"].items() <= labels(pod).items() for one in budgets)


def test_stores_have_one_writer():
    for name in STACKS:
        for stateful in stack(name).of("StatefulSet"):
            assert stateful["spec"]["replicas"] == 1
            assert stateful["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"


def test_secure_servers_ask_for_certificates_and_tokens():
    for name in ("serving/gateway", "signals/signals", "items/items"):
        one = stack("secure").container(name)
        wanted = {"PINREC_TLS_CERT", "PINREC_TLS_KEY", "PINREC_TLS_CLIENT_CA", "PINREC_TOKENS", "PINREC_CLIENT_CA"}
        assert wanted <= one.env.keys()
        assert "exec" in one.spec["livenessProbe"], "the kubelet's gRPC probes speak no TLS"
    for name in ("serving/triton", "memory/triton"):
        one = stack("secure").container(name)
        assert {"PINREC_CLIENT_CA", "PINREC_TOKEN_FILE", "PINREC_TLS_CERT", "PINREC_TLS_CLIENT_CA"} <= one.env.keys()
    for name in ("serving/gateway", "serving/triton", "memory/triton"):
        assert stack("secure").container(name).env["PINREC_TRITON_TLS"] == "1", "both ends, or neither"


# --- autoscaling ---


def test_an_autoscaled_deployment_names_no_number_of_replicas():
    for name, kind, minimum in (
        ("gpu", "ScaledObject", "minReplicaCount"),
        ("hpa", "HorizontalPodAutoscaler", "minReplicas"),
    ):
        [scaler] = stack(name).of(kind)
        [serving] = [one for one in stack(name).of("Deployment") if one["metadata"]["name"] == "serving"]
        assert scaler["spec"]["scaleTargetRef"]["name"] == "serving"
        assert "replicas" not in serving["spec"]
        assert scaler["spec"][minimum] >= 2


def test_the_metrics_of_the_hpa_are_what_the_adapter_is_told_to_make():
    [scaler] = stack("hpa").of("HorizontalPodAutoscaler")
    rules = yaml.safe_load((K8S / "components/hpa/adapter-rules.yaml").read_text())["rules"]["custom"]
    assert {one["pods"]["metric"]["name"] for one in scaler["spec"]["metrics"]} == {one["name"]["as"] for one in rules}


QUEUE_CASE = """
rule_files: [rules.yml]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      # Two pods, 10 requests a second each. In one a request waits 30 ms for generate and 10 ms for retrieve, in the
      # other 5 ms for generate. The ensemble has no queue; were it counted, it would double what is there.
      - {series: 'nv_inference_queue_duration_us{ONE, model="generate"}', values: '0+4500000x20'}
      - {series: 'nv_inference_queue_duration_us{ONE, model="retrieve"}', values: '0+1500000x20'}
      - {series: 'nv_inference_queue_duration_us{ONE, model="pinrec"}', values: '0+6000000x20'}
      - {series: 'nv_inference_queue_duration_us{TWO, model="generate"}', values: '0+750000x20'}
      - {series: 'nv_inference_queue_duration_us{OTHER, model="generate"}', values: '0+9000000x20'}
      - {series: 'nv_inference_request_success{ONE, model="generate"}', values: '0+150x20'}
      - {series: 'nv_inference_request_success{TWO, model="generate"}', values: '0+150x20'}
      - {series: 'nv_inference_request_success{OTHER, model="generate"}', values: '0+150x20'}
    promql_expr_test:
      - {expr: queue, eval_time: 5m, exp_samples: EXPECTED}
  - interval: 15s
    input_series: []
    promql_expr_test:
      - {expr: queue, eval_time: 5m, exp_samples: WITHOUT}
"""
PODS = {
    "ONE": 'namespace="pinrec", instance="a:8002", pod="a"',
    "TWO": 'namespace="pinrec", instance="b:8002", pod="b"',
    "OTHER": 'namespace="elsewhere", instance="c:8002", pod="c"',
}


LABELS = """{{labels: 'queue{{pod="{}"}}', value: {}}}"""


def keda_query() -> str:
    [scaler] = stack("gpu").of("ScaledObject")
    return scaler["spec"]["triggers"][0]["metadata"]["query"]


def adapter_query() -> str:
    """As prometheus-adapter fills it in for the pods of our namespace."""
    rules = yaml.safe_load((K8S / "components/hpa/adapter-rules.yaml").read_text())["rules"]["custom"]
    query = rules[0]["metricsQuery"]
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="pinrec"')


@pytest.mark.parametrize(
    ("query", "expected", "without"),
    [
        # KEDA divides the sum by the number of pods, the autoscaler takes the mean over them: 0.0225 s both.
        (keda_query, "[{labels: queue, value: 0.045}]", "[{labels: queue, value: 0}]"),
        (
            adapter_query,
            """[{labels: 'queue{pod="a"}', value: 0.04}, {labels: 'queue{pod="b"}', value: 0.005}]""",
            "[]",
        ),
    ],
)
def test_queue_seconds_of_two_pods_worked_by_hand(requires_program, tmp_path, query, expected, without):
    requires_program("promtool")
    assert re.search(r'model=~"([a-z_|]+)"', query())[1].split("|") == [stage.name for stage in STAGES]
    rules = {"groups": [{"name": "test", "rules": [{"record": "queue", "expr": query()}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    case = QUEUE_CASE.replace("EXPECTED", expected).replace("WITHOUT", without)
    for name, pod in PODS.items():
        case = case.replace(f"{{{name},", f"{{{pod},")
    (tmp_path / "case.yml").write_text(case)
    told = subprocess.run(["promtool", "test", "rules", "case.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr


# --- the toolbox ---


def test_the_toolbox_names_every_gateway():
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    told = subprocess.run(
        ["sh", "-x", K8S / "toolbox/pinrec.sh", "release", "--help"],
        env={**os.environ, "PATH": path, "PINREC_GATEWAY_SERVICE": "localhost"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PINREC_GATEWAYS=127-0-0-1.localhost:8500" in told.stderr.replace("'", "")
    assert "Publish, list, verify, activate" in told.stdout
