"""What the images hold, and what an audit says of it."""

import json
import re

import pytest
from click.testing import CliRunner

from deploy import supply_chain
from deploy.supply_chain import IMAGES, KNOWN_BAD, ROOT, main, packages, pins, write_bill


def test_every_image_of_the_dockerfile_has_a_bill():
    stages = re.split(r"^FROM \S+ AS ", (ROOT / "deploy/docker/Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    assert {stage.split()[0] for stage in stages if "ENTRYPOINT" in stage} == set(IMAGES)


def test_an_image_holds_what_its_lock_lists_for_its_python():
    listed = {one.name: str(one.specifier) for one in packages("gateway")}
    lock = (ROOT / "deploy/docker/locks/gateway.txt").read_text()
    assert f"grpcio{listed['grpcio']}\n" in lock
    assert f"numpy{listed['numpy']} ; python_full_version >= '3.12'" in lock
    assert "colorama" in lock
    assert "colorama" not in listed, "for Windows"
    assert {"torch", "faiss-cpu"}.isdisjoint(listed)
    assert {"torch", "faiss-cpu"} <= {one.name for one in packages("items")}
    assert {one.name for one in packages("triton-cpu")} - {one.name for one in packages("items")} == {"nvidia-pytriton"}


def test_a_bill_names_every_package_with_its_version(tmp_path):
    write_bill("signals", tmp_path / "bill")
    bill = json.loads((tmp_path / "bill").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    assert bill["metadata"]["component"]["name"] == "pinrec"
    named = sorted(f"{one['name']}=={one['version']}\n" for one in bill["components"])
    assert "".join(named) == pins(packages("signals"))


def audit(monkeypatch, answers, *options):
    """The command, with sources that answer as given."""
    monkeypatch.setattr(supply_chain, "ask", lambda source, asked: answers.get((source, asked == KNOWN_BAD), {}))
    return CliRunner().invoke(main, ["audit", *options])


BAD = {"jinja2": ["CVE-2019-10906, fixed in 2.10.1"]}


def test_nobody_to_ask_is_not_a_clean_bill(monkeypatch):
    unknowing = {("pypi", True): {"jinja2": None}, ("pypi", False): {"grpcio": []}}
    for answers in ({}, unknowing):
        told = audit(monkeypatch, answers)
        assert (told.exit_code, "NOT AUDITED" in told.output) == (1, True)
        told = audit(monkeypatch, answers, "--if-reachable")
        assert (told.exit_code, "NOT AUDITED" in told.output) == (0, True)


def test_the_second_source_is_asked_if_the_first_knows_nothing(monkeypatch):
    told = audit(monkeypatch, {("osv", True): BAD, ("osv", False): {"grpcio": [], "unheard-of": None}})
    assert told.exit_code == 0
    assert "unheard-of: unknown to osv" in told.output
    assert "osv: 2 packages, 0 with advisories, 1 not audited" in told.output


def test_an_advisory_fails_the_audit(monkeypatch):
    answers = {("pypi", True): BAD, ("pypi", False): {"grpcio": ["CVE-1, fixed in 2.0"], "numpy": []}}
    told = audit(monkeypatch, answers, "--if-reachable")
    assert told.exit_code == 1
    assert "grpcio: CVE-1, fixed in 2.0" in told.output
    assert "advisories against grpcio" in told.output


def test_answers_of_the_tool_are_read(monkeypatch):
    found = [{"id": "CVE-2", "fix_versions": ["1.1", "2.0"]}, {"id": "CVE-3", "fix_versions": []}]
    unheard = {"name": "c", "skip_reason": "not found"}
    written = {"dependencies": [{"name": "a", "vulns": []}, {"name": "b", "vulns": found}, unheard]}

    def run(command, **_):
        with open(command[command.index("--output") + 1], "w") as file:
            json.dump(written, file)

    monkeypatch.setattr(supply_chain.subprocess, "run", run)
    known = ["CVE-2, fixed in 1.1, 2.0", "CVE-3, fixed in no version"]
    assert supply_chain.ask("pypi", "a==1\n") == {"a": [], "b": known, "c": None}


@pytest.mark.parametrize("source", supply_chain.SOURCES)
def test_a_source_that_does_not_answer_says_nothing(monkeypatch, source):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nobody listens there
    assert supply_chain.ask(source, KNOWN_BAD).get("jinja2") is None
