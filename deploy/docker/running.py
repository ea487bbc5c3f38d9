"""The stack of docker-compose.yml while it runs: started, asked how it is, hurt and stopped."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deploy.docker.images import Engine, output

ROLES = ("signals", "items", "triton", "gateway")
PATIENCE_S = 180.0


@dataclass(frozen=True)
class Containers:
    """Services of one compose project; `settings` are variables of its `files`."""

    engine: Engine
    project: str
    settings: dict[str, str]
    services: tuple[str, ...]
    files: tuple[str, ...] = ("docker-compose.yml",)
    _ids: dict[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str) -> str:
        """What a call of compose prints. Raises RuntimeError with its words if it fails."""
        files = [word for name in self.files for word in ("-f", name)]
        command = [*self.engine.compose, *files, "-p", self.project, "--profile", "cpu", *arguments]
        return output(command, {**self.engine.environment, **self.settings})

    def up(self) -> dict[str, float]:
        """Start; seconds until each is healthy. Raises RuntimeError with the last lines of one that is not in time."""
        start = time.monotonic()
        self.compose("up", "-d", *self.services)
        waiting, healthy_after = set(self.services), {}
        while waiting:
            for service in sorted(waiting):
                if self.healthy(service):
                    healthy_after[service] = time.monotonic() - start
            waiting -= healthy_after.keys()
            if time.monotonic() > start + PATIENCE_S:
                late = sorted(waiting)[0]
                raise RuntimeError(f"{late} is not healthy after {PATIENCE_S:.0f} s: {self.logs(late)[-3_000:]}")
            time.sleep(0.5)
        return healthy_after

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "--volumes")
        self._ids.clear()

    def container(self, service: str) -> str:
        """Id of a service's container. Raises RuntimeError if there is none."""
        if service not in self._ids:
            labels = {"project": self.project, "service": service}
            filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
            found = self.engine.run("ps", "--all", "--quiet", *filters).split()
            if len(found) != 1:
                raise RuntimeError(f"{len(found)} containers of {service}")
            self._ids[service] = found[0]
        return self._ids[service]

    def healthy(self, service: str) -> bool:
        """Whether the health check that came with the image passes now."""
        container = self.container(service)
        if self.engine.program == "docker":
            return bool(self.inspect(service)["State"].get("Health", {}).get("Status") == "healthy")
        try:
            self.engine.run("healthcheck", "run", container)
        except RuntimeError:
            return False
        return True

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        [facts] = json.loads(self.engine.run("inspect", self.container(service)))
        return dict(facts)

    def inside(self, service: str, *command: str) -> str:
        """What a command in a container prints. Raises RuntimeError if it fails."""
        return self.engine.run("exec", self.container(service), *command)

    def logs(self, service: str) -> str:
        """All that a container has printed."""
        command = [self.engine.program, "logs", self.container(service)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=self.engine.environment)
        return done.stdout + done.stderr

    def restart(self, service: str) -> None:
        """SIGTERM, and start anew: under the same name, at another address."""
        self.engine.run("restart", "--time", "40", self.container(service))

    def stop(self, service: str) -> int:
        """SIGTERM, then the exit code."""
        self.engine.run("stop", "--time", "40", self.container(service))
        return int(self.inspect(service)["State"]["ExitCode"])


def seconds_until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """How long it takes. Raises RuntimeError after `patience_s`."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + patience_s:
            raise RuntimeError(f"not in {patience_s:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - start
