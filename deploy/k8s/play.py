"""Pods of the manifests as containers of this machine: what a node would do with them, without a cluster.

What is taken over: commands, environment, mounts, users, read-only roots, capabilities, memory, shared memory, probes,
and the order inside a pod. What is not: network policies, scheduling, claims (folders stand for them).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.docker.images import Engine
from deploy.k8s.rendered import Container, Manifest, Stack, amount
from services.common.probe import answers, serves

NETWORK = "pinrec-k8s"
USER = "1000:1000"


@dataclass
class Played:
    """A container that runs: its name for the engine, and the port of this machine for each of its pod's."""

    spec: Container
    name: str
    ports: dict[int, int]


@dataclass
class Node:
    """Runs pods of `stack` from images `images`/ROLE:`tag`.

    `folders` stand for claims and secrets, by their names; those for ConfigMaps are made in `folders["config"]`. A
    second pod of a workload runs on another Node, with a `replica` of its own.
    """

    engine: Engine
    stack: Stack
    images: str
    tag: str
    folders: Mapping[str, Path]
    replica: str = "0"
    running: dict[str, Played] = field(default_factory=dict)

    def start(self, owner: str) -> None:
        """A pod: its sidecars one after the other, each when it has started, then the rest.

        Raises RuntimeError with the last lines of one that does not pass its startup probe in time.
        """
        for one in [one for one in self.stack.containers() if one.owner == owner]:
            self._run(one)
            if one.is_sidecar:
                self.await_start(one.name)

    def await_start(self, name: str) -> None:
        """Until the startup probe passes, if there is one, by its own period and patience. Raises RuntimeError."""
        check = self.running[name].spec.spec.get("startupProbe")
        if check is None:
            return
        for _ in range(check["failureThreshold"]):
            if self.passes(name, "startupProbe"):
                return
            time.sleep(check["periodSeconds"])
        raise RuntimeError(f"{name} did not start: {self.logs(name)[-3_000:]}")

    def passes(self, name: str, kind: str) -> bool:
        """Whether a probe passes now, asked as a kubelet would."""
        played = self.running[name]
        check: Manifest = played.spec.spec[kind]
        timeout_s = float(check.get("timeoutSeconds", 1))
        if "grpc" in check:
            address = f"localhost:{played.ports[check['grpc']['port']]}"
            return serves(address, check["grpc"].get("service", ""), timeout_s)
        if "httpGet" in check:
            port = played.ports[played.spec.ports[check["httpGet"]["port"]]]
            return answers(f"http://localhost:{port}{check['httpGet']['path']}", timeout_s)
        return self.inside(name, *check["exec"]["command"])

    def inside(self, name: str, *command: str) -> bool:
        """Whether a command in a container succeeds."""
        try:
            self.engine.run("exec", self.running[name].name, *command)
        except RuntimeError:
            return False
        return True

    def read(self, name: str, *command: str) -> str:
        """What a command in a container prints. Raises RuntimeError if it fails."""
        return self.engine.run("exec", self.running[name].name, *command)

    def logs(self, name: str) -> str:
        """All that a container has printed."""
        return self.engine.run("logs", self.running[name].name)

    def stop(self, name: str, grace_s: float) -> tuple[int, float]:
        """SIGTERM, after `grace_s` SIGKILL. Exit code and seconds."""
        start = time.monotonic()
        self.engine.run("stop", "--time", str(int(grace_s)), self.running[name].name)
        code = self.engine.run("inspect", "--format", "{{.State.ExitCode}}", self.running[name].name)
        return int(code), time.monotonic() - start

    def clear(self) -> None:
        """Remove what an earlier run or this one has left."""
        for place in ("joined", "first"):  # whose network another has goes last
            names = self.engine.run("ps", "--all", "--quiet", f"--filter=label={NETWORK}={place}").split()
            if names:
                self.engine.run("rm", "--force", "--volumes", *names)
        if NETWORK in self.engine.run("network", "ls", "--format", "{{.Name}}").split():
            self.engine.run("network", "rm", NETWORK)
        self.running.clear()

    def _run(self, one: Container) -> None:
        """A pod's first container has its network and its names; the others join it."""
        first = next((played for played in self.running.values() if played.spec.owner == one.owner), None)
        name = f"{NETWORK}-{one.name.replace('/', '-')}-{self.replica}"
        place = "first" if first is None else "joined"
        words = ["run", "--detach", f"--name={name}", f"--label={NETWORK}={place}", *self._confined(one)]
        if first is None:
            words += [f"--network={NETWORK}", *(f"--network-alias={alias}" for alias in self._names(one.owner))]
            words += [f"--publish=127.0.0.1::{port}" for port in self._ports(one.owner)]
        else:
            words += [f"--network=container:{first.name}"]
        words += [f"--env={key}={value}" for key, value in one.env.items()]
        words += self._mounts(one)
        role = str(one.spec["image"]).removeprefix("pinrec/").partition(":")[0]
        entry, *arguments = one.words
        self.engine.run(*words, f"--entrypoint={entry}", f"{self.images}/{role}:{self.tag}", *arguments)
        ports = (
            first.ports if first is not None else {port: self._published(name, port) for port in self._ports(one.owner)}
        )
        self.running[one.name] = Played(one, name, ports)

    def _confined(self, one: Container) -> list[str]:
        limits = one.spec["resources"]["limits"]
        return [
            *("--user", USER, "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"),
            f"--memory={int(amount(limits['memory']))}",
            *(["--read-only-tmpfs=false"] if self.engine.program == "podman" else []),
        ]

    def _mounts(self, one: Container) -> list[str]:
        words = []
        for mount in one.spec["volumeMounts"]:
            path, volume = mount["mountPath"], one.volumes.get(mount["name"], {"claim": mount["name"]})
            if path == "/dev/shm":
                words.append(f"--shm-size={int(amount(volume['emptyDir']['sizeLimit']))}")
            elif "emptyDir" in volume:
                size = int(amount(volume["emptyDir"]["sizeLimit"]))
                words.append(f"--tmpfs={path}:rw,size={size},mode=1777")
            else:
                folder = self._folder(one, volume)
                words.append(f"--volume={folder}:{path}{':ro' if mount.get('readOnly') else ''}")
        return words

    def _folder(self, one: Container, volume: Manifest) -> Path:
        if "persistentVolumeClaim" in volume:
            return self.folders[volume["persistentVolumeClaim"]["claimName"]]
        if "secret" in volume:
            return self.folders[volume["secret"]["secretName"]]
        if "configMap" in volume:
            return self._config(volume["configMap"]["name"])
        return self.folders[f"{one.owner}-{volume['claim']}"]

    def _config(self, name: str) -> Path:
        [files] = [one["data"] for one in self.stack.of("ConfigMap") if one["metadata"]["name"] == name]
        folder = self.folders["config"] / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text)
        return folder

    def _names(self, owner: str) -> list[str]:
        return self.stack.services_of(owner)

    def _ports(self, owner: str) -> list[int]:
        return [port for one in self.stack.containers() if one.owner == owner for port in one.ports.values()]

    def _published(self, name: str, port: int) -> int:
        return int(self.engine.run("port", name, str(port)).splitlines()[0].rpartition(":")[2])
