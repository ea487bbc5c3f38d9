"""What the images hold, and what is known against it.

python deploy/supply_chain.py sbom          # build/sbom/IMAGE.cdx.json: every Python package of an image (CycloneDX)
python deploy/supply_chain.py audit         # published vulnerabilities of all of them
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import click
from packaging.requirements import Requirement

from services.triton.tools import WHEEL

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "deploy" / "docker" / "locks"
SBOM = ROOT / "build" / "sbom"

IMAGES = {
    "gateway": "gateway",
    "signals": "signals",
    "ingest": "ingest",
    "items": "models-cpu",
    "triton-cpu": "models-cpu",
    "triton": "models-gpu",
}
"""Image -> the lock that it is installed from. What its base image holds is in neither list: ask who made it."""

INSIDE = {
    "platform_machine": "x86_64",
    "platform_system": "Linux",
    "python_full_version": "3.12.0",
    "python_version": "3.12",
    "sys_platform": "linux",
}
"""Where the packages are installed: the Python of the Dockerfile's bases."""

SOURCES = ("pypi", "osv")
KNOWN_BAD = "jinja2==2.10"
"""A version with published vulnerabilities (CVE-2019-10906): a source that knows nothing of it knows nothing."""


def packages(image: str) -> list[Requirement]:
    """What an image holds of Python packages, each with its version."""
    lines = [*(LOCKS / f"{IMAGES[image]}.txt").read_text().splitlines(), *([WHEEL] if image == "triton-cpu" else [])]
    required = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return [one for one in required if one.marker is None or one.marker.evaluate(INSIDE)]


def pins(required: Iterable[Requirement]) -> str:
    """A requirements file without markers."""
    return "".join(sorted({f"{one.name}{one.specifier}\n" for one in required}))


@click.group()
def main() -> None:
    """What the images hold, and what is known against it."""


@main.command()
@click.option("--to", default=SBOM, show_default="build/sbom", type=click.Path(path_type=Path, file_okay=False))
def sbom(to: Path) -> None:
    """Write a software bill of materials of each image."""
    to.mkdir(parents=True, exist_ok=True)
    for image in IMAGES:
        write_bill(image, to / f"{image}.cdx.json")
    click.echo(f"{len(IMAGES)} bills of materials in {to}")


@main.command()
@click.option("--if-reachable", is_flag=True, help="Where nobody can be asked, say so and end with 0.")
def audit(if_reachable: bool) -> None:
    """Ask what is known against the packages of all images; exit code 1 if anything is, or if nobody could be asked."""
    source = next((one for one in SOURCES if ask(one, KNOWN_BAD).get("jinja2")), None)
    if source is None:
        words = f"NOT AUDITED: no source of advisories ({', '.join(SOURCES)}) knows of {KNOWN_BAD}, so none was asked"
        if not if_reachable:
            raise click.ClickException(words)
        click.echo(words)
        return
    everything = pins(one for image in IMAGES for one in packages(image))
    answers = ask(source, everything.replace("+cpu", ""))  # advisories are about versions, not about builds of them
    for name, found in sorted(answers.items()):
        if found is None:
            click.echo(f"  {name}: unknown to {source}")
        for advisory in found or ():
            click.echo(f"  {name}: {advisory}")
    vulnerable = [name for name, found in answers.items() if found]
    unknown = [name for name, found in answers.items() if found is None]
    click.echo(f"{source}: {len(answers)} packages, {len(vulnerable)} with advisories, {len(unknown)} not audited")
    if vulnerable:
        raise click.ClickException(f"advisories against {', '.join(sorted(vulnerable))}")


def write_bill(image: str, to: Path) -> None:
    """What an image holds, as CycloneDX; not held to its schema once more, which takes seconds: a library writes it."""
    command = [*_tool("cyclonedx_py"), "requirements", "-", "--pyproject", str(ROOT / "pyproject.toml")]
    command += ["--mc-type", "application", "--output-reproducible", "--of", "JSON", "--no-validate", "-o", str(to)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # it warns that a lock does not say who needs what
    subprocess.run(command, input=pins(packages(image)), text=True, env=quiet, check=True)


def ask(source: str, requirements: str) -> dict[str, list[str] | None]:
    """Package -> its advisories; None = the source does not know the package. Empty if the source does not answer."""
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "requirements.txt", Path(folder) / "told.json"
        asked.write_text(requirements)
        command = [*_tool("pip_audit"), "--requirement", str(asked), "--no-deps", "--disable-pip", "-s", source]
        command += ["--format", "json", "--output", str(told), "--progress-spinner", "off"]
        subprocess.run(command, capture_output=True, check=False)  # its exit code does not tell these cases apart
        dependencies = json.loads(told.read_text())["dependencies"] if told.exists() else []
    return {one["name"]: _advisories(one) for one in dependencies}


def _advisories(dependency: dict[str, object]) -> list[str] | None:
    found = dependency.get("vulns")
    if not isinstance(found, list):
        return None
    return [f"{one['id']}, fixed in {', '.join(one['fix_versions']) or 'no version'}" for one in found]


def _tool(module: str) -> list[str]:
    return [sys.executable, "-m", module]


if __name__ == "__main__":
    main(prog_name="python deploy/supply_chain.py")
