"""The Kubernetes manifests: their schema, and what makes a container safe to run."""

import json
import re

import jsonschema
import kubernetes_validate
import pytest

from deploy.k8s.rendered import K8S, ROOT, Manifest, amount
from pinrec_core import __version__
from services.common.server import LIVE
from services.gateway import server as gateway
from services.items import server as items
from services.signals import server as signals
from tests.contract.manifests import STACKS, command, each_container, stack

OLDEST, NEWEST = "1.30.0", kubernetes_validate.latest_version()
"""Versions of Kubernetes: the one that base/kustomization.yaml asks for, and the newest that the schemas know."""

FROM_ELSEWHERE = {
    *("gateway-tls", "signals-tls", "items-tls", "memory-tls", "ingest-tls", "toolbox-tls"),
    *("tokens", "internal-token", "ingest-token", "admin-token", "events"),
}
"""Secrets and claims that somebody else makes; each component says which."""

HEALTH_NAMES = {"", LIVE, gateway.SERVICE, gateway.FULL, signals.SERVICE, items.SERVICE}

every_stack = pytest.mark.parametrize("name", STACKS)


# --- schemas ---


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_its_schema(version):
    different = {json.dumps(one, sort_keys=True) for name in STACKS for one in stack(name).objects}
    for one in different:
        validate(json.loads(one), version)


def validate(manifest: Manifest, version: str) -> None:
    """Nothing that the schema does not know is allowed; kinds that operators bring have one of ours."""
    own = K8S / "schemas" / f"{manifest['kind']}.json"
    if own.exists():
        jsonschema.validate(manifest, json.loads(own.read_text()))
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "ServiceMonitor", "PrometheusRule"])
def test_a_typing_error_does_not_fit(kind):
    wrong = json.loads(json.dumps(stack("gpu").of(kind)[0]))
    wrong["spec"]["replicass"] = 1
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError), match="replicass"):
        validate(wrong, NEWEST)


# --- each container ---


def test_every_container_is_bounded():
    for one in each_container():
        requests, limits = one.spec["resources"]["requests"], one.spec["resources"]["limits"]
        assert {"cpu", "memory", "ephemeral-storage"} <= limits.keys(), one.name
        assert {key: amount(requests[key]) <= amount(limits[key]) for key in requests} == dict.fromkeys(requests, True)
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in one.volumes.values() if "emptyDir" in volume]
        assert all(map(amount, sizes)), "a folder without a limit fills the node"


def test_every_container_is_locked_in():
    for one in each_container():
        pod = one.pod["spec"]["securityContext"]
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == (1000 if one.is_ours else pod["fsGroup"])
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert one.spec["securityContext"] == locked, one.name
        assert one.pod["spec"]["automountServiceAccountToken"] is False
        assert one.pod["spec"]["enableServiceLinks"] is False
        assert not one.pod["spec"].keys() & {"hostNetwork", "hostPID", "hostIPC"}
        assert one.mount("/tmp"), "Python and gRPC want to write there"


def test_images_are_pinned_to_a_target_of_the_dockerfile_at_this_version():
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "deploy/docker/Dockerfile").read_text(), re.MULTILINE)
    for one in each_container():
        if one.is_ours:
            role, tag = one.spec["image"].removeprefix("pinrec/").split(":")
            assert role in targets, one.name
            assert tag == __version__
        else:
            assert re.search(r":v?[0-9][\w.]+$", one.spec["image"]), "pinned too, by a version"


def test_only_those_who_must_write_can():
    own = {"/tmp", "/dev/shm", "/data", "/var/lib/grafana"}
    writers = {"toolbox/toolbox": {"/releases", "/batch-view"}, "batch-view/batch-view": {"/batch-view"}}
    for one in each_container():
        written = {mount["mountPath"] for mount in one.spec["volumeMounts"] if not mount.get("readOnly")}
        assert written - own <= writers.get(one.name, set()), one.name


@every_stack
def test_what_serves_has_probes_that_name_what_exists(name):
    for one in stack(name).serving():
        kinds = {"startupProbe", "readinessProbe", "livenessProbe"}
        if one.is_sidecar:  # the pod is ready when its gateway is: degraded answers are better than none
            kinds -= {"readinessProbe"}
        assert kinds == {key for key in one.spec if key.endswith("Probe")}, one.name
        for kind in kinds:
            check = one.spec[kind]
            if "grpc" in check:
                assert check["grpc"]["port"] == one.ports["grpc"]
                assert check["grpc"].get("service", "") in HEALTH_NAMES
                assert (check["grpc"].get("service") == LIVE) == (kind == "livenessProbe"), (
                    "not ready is no reason to die"
                )
            elif "httpGet" in check:
                assert one.ports[check["httpGet"]["port"]]
            elif "exec" in check:
                command(one.name, check["exec"]["command"])
            else:
                assert not one.is_ours, "an open port says little"
                assert one.ports[check["tcpSocket"]["port"]]
        started = one.spec["startupProbe"]
        assert started["periodSeconds"] * started["failureThreshold"] >= 120, "a release is read in that time"


# --- references ---


@every_stack
def test_everything_that_is_referred_to_exists(name):
    rendered = stack(name)
    for owner, pod in rendered.pods.items():
        account = pod["spec"].get("serviceAccountName")
        assert account is None or account in rendered.named("ServiceAccount")
        for volume in pod["spec"].get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            secret = volume.get("secret", {}).get("secretName")
            assert not claim or claim in rendered.named("PersistentVolumeClaim") | FROM_ELSEWHERE, owner
            assert not secret or secret in FROM_ELSEWHERE, owner
            if "configMap" in volume:
                assert volume["configMap"]["name"] in rendered.named("ConfigMap"), owner
    for one in rendered.containers():
        templates = [
            t["metadata"]["name"] for s in rendered.of("StatefulSet") for t in s["spec"]["volumeClaimTemplates"]
        ]
        volumes = {volume["name"] for volume in one.volumes.values()} | set(templates)
        assert {mount["name"] for mount in one.spec["volumeMounts"]} <= volumes, one.name
        for value in one.env.values():
            if value.startswith("/"):  # a file: in a folder that is mounted
                assert any(value.startswith(mount["mountPath"]) for mount in one.spec["volumeMounts"]), value
    for service in rendered.of("Service"):
        owners = rendered.selected(service["spec"]["selector"])
        ports = {port for one in rendered.containers() if one.owner in owners for port in one.ports}
        assert {entry["targetPort"] for entry in service["spec"]["ports"]} <= ports, service["metadata"]["name"]
        speaks_grpc = {"grpc", "triton"} & {entry["name"] for entry in service["spec"]["ports"]}
        assert not speaks_grpc or service["spec"]["clusterIP"] == "None", "gRPC balances by name"
    for budget in rendered.of("PodDisruptionBudget"):
        assert rendered.selected(budget["spec"]["selector"])
    for stateful in rendered.of("StatefulSet"):
        assert stateful["spec"]["serviceName"] in rendered.named("Service")


def test_components_say_which_secrets_and_claims_they_need():
    said = "".join(path.read_text() for path in (K8S / "components").glob("*/kustomization.yaml"))
    assert {one for one in FROM_ELSEWHERE if one not in said} == set()
