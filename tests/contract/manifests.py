"""The manifests as kustomize renders them, and the questions that the tests ask of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import click
import yaml

from services.cli.main import main as pinrec
from services.common import probe
from services.gateway import server as gateway
from services.items import server as items
from services.signals import server as signals
from services.triton.__main__ import main as triton

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
_UNITS = {"m": 1e-3, "": 1, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

STACKS = {
    "laptop": (["overlays/laptop"], []),
    "gpu": (["overlays/gpu"], []),
    "split": (["overlays/split"], []),
    "hpa": (["base"], ["components/hpa"]),
    "secure": (["overlays/split", "toolbox"], ["components/secure", "components/mtls"]),
    "batch-view": (["base", "toolbox"], ["components/batch-view"]),
}
"""What is rendered: the overlays, and each component with something to stand on."""

COMMANDS = {
    "services.gateway.server": gateway.main,
    "services.signals.server": signals.main,
    "services.items.server": items.main,
    "services.triton": triton,
    "services.cli.main": pinrec,
    "services.common.probe": probe.main,
}

Manifest = dict[str, Any]


def amount(quantity: str) -> float:
    """A quantity of Kubernetes in base units: "500m" is 0.5, "1Ki" is 1024."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", quantity).groups()
    return float(number) * _UNITS[unit]


def render(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl", path=_PATH)
    rendered = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    assert not rendered.stderr, "kustomize warns of what it will drop"
    return list(yaml.load_all(rendered.stdout, yaml.CSafeLoader))


@dataclass(frozen=True)
class Container:
    """A container with the pod that it belongs to. A sidecar lives as long as the pod's others do."""

    owner: str
    spec: Manifest
    pod: Manifest
    is_sidecar: bool

    @property
    def name(self) -> str:
        return f"{self.owner}/{self.spec['name']}"

    @property
    def is_ours(self) -> bool:
        return self.spec["image"].startswith("pinrec/")

    @property
    def words(self) -> list[str]:
        """Its command line."""
        return [*self.spec.get("command", []), *self.spec.get("args", [])]

    @property
    def env(self) -> dict[str, str]:
        return {one["name"]: one["value"] for one in self.spec.get("env", [])}

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports", [])}

    def mount(self, path: str) -> Manifest | None:
        """The volume mounted at `path`."""
        names = [mount["name"] for mount in self.spec["volumeMounts"] if mount["mountPath"] == path]
        return next((volume for volume in self.volumes() if [volume["name"]] == names), None)

    def volumes(self) -> list[Manifest]:
        return self.pod["spec"].get("volumes", [])


@dataclass(frozen=True)
class Stack:
    """Everything of one rendering."""

    objects: list[Manifest]

    def of(self, *kinds: str) -> list[Manifest]:
        return [one for one in self.objects if one["kind"] in kinds]

    def named(self, kind: str) -> set[str]:
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
        for owner, pod in self.pods.items():
            for spec in pod["spec"].get("initContainers", []):
                yield Container(owner, spec, pod, is_sidecar=spec.get("restartPolicy") == "Always")
            for spec in pod["spec"]["containers"]:
                yield Container(owner, spec, pod, is_sidecar=False)

    def container(self, name: str) -> Container:
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
        return next(one for one in self.of("Service") if one["metadata"]["name"] == name)

    def may_call(self, caller: str, callee: str, port: int) -> bool:
        """Whether the policies let one pod open a connection to another's port."""
        outward = [
            rule
            for policy in self._policies(caller, "Egress")
            for rule in policy["spec"].get("egress", [])
            if self._named(rule.get("to", []), callee) and self._port(rule, callee, port)
        ]
        return bool(outward) and bool(
            [rule for rule in self._ingress(callee, port) if self._named(rule.get("from", []), caller)]
        )

    def doors(self, callee: str, port: int) -> list[Manifest]:
        """Labels of the namespaces that may open a connection to a pod's port."""
        peers = [peer for rule in self._ingress(callee, port) for peer in rule.get("from", [{}])]
        return [peer["namespaceSelector"]["matchLabels"] for peer in peers if "namespaceSelector" in peer]

    def _ingress(self, callee: str, port: int) -> list[Manifest]:
        policies = self._policies(callee, "Ingress")
        return [rule for one in policies for rule in one["spec"].get("ingress", []) if self._port(rule, callee, port)]

    def _policies(self, owner: str, way: str) -> list[Manifest]:
        policies = [one for one in self.of("NetworkPolicy") if way in one["spec"]["policyTypes"]]
        return [one for one in policies if owner in self.selected(one["spec"]["podSelector"])]

    def _named(self, peers: list[Manifest], owner: str) -> bool:
        return any(owner in self.selected(peer["podSelector"]) for peer in peers if "podSelector" in peer)

    def _port(self, rule: Manifest, owner: str, port: int) -> bool:
        ports = {name: number for one in self.containers() if one.owner == owner for name, number in one.ports.items()}
        return any(ports.get(one["port"], one["port"]) == port for one in rule.get("ports", []))


def labels(manifest: Manifest) -> dict[str, str]:
    return manifest["metadata"].get("labels", {})


@cache
def stack(name: str) -> Stack:
    """One of STACKS, put together by a kustomization as a user would write it."""
    with tempfile.TemporaryDirectory() as folder:
        resources, components = ([os.path.relpath(K8S / one, folder) for one in part] for part in STACKS[name])
        words = yaml.safe_dump({"resources": resources, "components": components})
        (Path(folder) / "kustomization.yaml").write_text(words)
        return Stack(render(Path(folder)))


def each_container() -> list[Container]:
    """Every container of every stack; a job and the toolbox are pods like others here."""
    return [one for name in STACKS for one in stack(name).containers()]


def command(name: str, words: list[str]) -> dict[str, Any]:
    """What a `python -m` command line sets, as the program itself reads it; fails where that would refuse."""
    python, flag, module, *rest = words
    assert (python, flag) == ("python", "-m"), name
    found: click.Command = COMMANDS[module]
    context = click.Context(found)
    while isinstance(found, click.Group):
        verb = found.get_command(context, rest.pop(0))
        assert verb is not None, name
        found = verb
        context = click.Context(found)
    given, left, _ = found.make_parser(context).parse_args(list(rest))
    assert not left, name
    wanted = {option.name for option in found.params if option.required and not option.envvar}
    assert wanted <= given.keys(), name
    return given


def options(one: Container) -> dict[str, Any]:
    """What a container's command line sets."""
    return command(one.name, one.words)
