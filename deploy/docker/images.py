"""Building the images with docker or podman, whichever is there; where there is no registry, from wheels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from pinrec_core.errors import NotSetUp
from services.triton.tools import WHEEL

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
TARGETS = ("gateway", "signals", "ingest", "items", "triton-cpu")
"""What is built without a GPU, in an order in which each finds the layers of those before."""
LOCKS = ("gateway", "signals", "ingest", "models-cpu")


@dataclass(frozen=True)
class Engine:
    """`program` builds and runs, `compose` reads docker-compose.yml, both with `environment`."""

    program: str
    compose: tuple[str, ...]
    environment: dict[str, str]

    def run(self, *arguments: str) -> str:
        """What a call of the engine prints. Raises RuntimeError with its words if it fails."""
        return output([self.program, *arguments], self.environment)


def find_engine() -> Engine:
    """docker if its daemon answers, else podman. Raises NotSetUp if neither can be used."""
    if _works("docker", "info") and _works("docker", "compose", "version"):
        return Engine("docker", ("docker", "compose"), dict(os.environ))
    podman_compose = shutil.which("podman-compose") or shutil.which("podman-compose", path=str(Path(sys.prefix, "bin")))
    if _works("podman", "info") and podman_compose:
        # Podman's own image format has no health checks; it runs them by systemd, without which we ask ourselves.
        format_ = {"BUILDAH_FORMAT": "docker"}
        timers = {} if Path("/run/systemd/system").is_dir() else {"DISABLE_HC_SYSTEMD": "true"}
        return Engine("podman", (podman_compose,), {**os.environ, **format_, **timers})
    raise NotSetUp(
        "no container engine: neither `docker info` and `docker compose version` work, nor `podman info` with "
        "podman-compose (pip install podman-compose)"
    )


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def output(command: Sequence[str], environment: dict[str, str]) -> str:
    """What a command prints. Raises RuntimeError with its last words if it fails."""
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stdout + done.stderr)[-3_000:]}")
    return done.stdout


def build(engine: Engine, images: str, tag: str, base: str, wheels: Path) -> None:
    """Every target as `images`/TARGET:`tag`; from `base` and `wheels` if a base is named, else as the Dockerfile says.

    With a base comes an image that stands in for Prometheus'. Raises RuntimeError.
    """
    options: list[str] = []
    if base:
        collect_wheels(engine, base, wheels)
        options = [
            f"--build-arg=BASE={base}",
            "--build-arg=PIP_CONFIG_FILE=/wheels/pip.conf",
            f"-v={wheels}:/wheels:ro",
        ]
        fallback = str(FOLDER / "fallback.Dockerfile")
        engine.run("build", f"--build-arg=BASE={base}", "-f", fallback, "-t", f"{images}/prometheus:{tag}", ".")
    for target in TARGETS:
        dockerfile = str(FOLDER / "Dockerfile")
        engine.run("build", *options, "-f", dockerfile, f"--target={target}", "-t", f"{images}/{target}:{tag}", ".")


def collect_wheels(engine: Engine, base: str, wheels: Path) -> None:
    """Every package of the locks, for the Python of `base`, fetched by this machine's pip as it is set up here."""
    code = "import platform; print(platform.python_version())"
    version = engine.run("run", "--rm", base, "python3", "-c", code).strip()
    python = {"python_full_version": version, "python_version": version.rpartition(".")[0]}
    lines = {line for lock in LOCKS for line in (FOLDER / "locks" / f"{lock}.txt").read_text().splitlines()}
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate(python)]
    wheels.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    pins = [f"{one.name}{one.specifier}" for one in wanted]
    output([*pip, f"--python-version={version}", "--dest", str(wheels), *pins, WHEEL], dict(os.environ))
    (wheels / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
