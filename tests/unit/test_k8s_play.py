"""What a pod becomes on a machine with a container engine."""

import re
from pathlib import Path

import pytest

from deploy.k8s.play import NETWORK, Node
from deploy.k8s.rendered import render


class Recorder:
    """An engine that starts nothing and remembers what it was asked."""

    program = "podman"

    def __init__(self) -> None:
        self.calls = []

    def run(self, *arguments: str) -> str:
        self.calls.append(arguments)
        return f"127.0.0.1:{40_000 + int(arguments[2]) % 10_000}\n" if arguments[0] == "port" else ""


@pytest.fixture
def node():
    names = ("releases", "batch-view", "signals-data", "items-data")
    folders = {name: Path("/claims") / name for name in names}
    return Node(Recorder(), render(["overlays/laptop"]), "localhost/pinrec", "dev", folders)


def started(node: Node, owner: str) -> list[str]:
    """Command lines of a pod's containers; every probe passes."""
    node.passes = lambda name, kind: True
    node.start(owner)
    return [" ".join(call) for call in node.engine.calls if call[0] == "run"]


def test_a_pod_runs_as_its_manifest_says(node):
    [line] = started(node, "signals")
    for word in ("--user 1000:1000", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"):
        assert word in line
    assert f"--memory={2 * 2**30}" in line
    assert f"--network={NETWORK} --network-alias=signals" in line
    assert "--volume=/claims/releases:/releases:ro" in line
    assert "--volume=/claims/signals-data:/data " in line, "a claim of its own, which it writes"
    assert f"--tmpfs=/tmp:rw,size={64 * 2**20},mode=1777" in line
    assert "--entrypoint=python localhost/pinrec/signals:dev -m services.signals.server --releases=/releases" in line


def test_containers_of_a_pod_share_its_network_and_sidecars_come_first(node):
    triton, gateway = started(node, "serving")
    assert "localhost/pinrec/triton-cpu:dev" in triton
    assert f"--shm-size={512 * 2**20}" in triton
    assert "--network-alias=gateway" in triton
    assert sorted(re.findall(r"--publish=127\.0\.0\.1::(\d+)", triton)) == ["8001", "8002", "8003", "8500", "9500"]
    assert f"--network=container:{NETWORK}-serving-triton-0" in gateway
    assert "--publish" not in gateway
    assert node.running["serving/gateway"].ports[8500] == node.running["serving/triton"].ports[8500] == 48_500


def test_the_gateway_waits_for_its_sidecar(node):
    node.passes = lambda name, kind: False
    node.stack.container("serving/triton").spec["startupProbe"].update(failureThreshold=2, periodSeconds=0)
    with pytest.raises(RuntimeError, match="serving/triton did not start"):
        node.start("serving")
    assert list(node.running) == ["serving/triton"]
