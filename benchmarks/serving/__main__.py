"""How fast the stack is: every part beside floors and peers, in one run, with a page and plots.

    python -m benchmarks.serving --size small --work work/serving --report docs/serving [--only decoder]

Each part runs in a process of its own, one after the other, so that no library of one disturbs another. With --report
the page is written from the JSON of the parts, those of earlier runs among them.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.chaos.table import MARKS

PARTS = {
    "decoder": "The decoder",
    "retrieval": "Retrieval",
    "id_tables": "ID embedding and memory",
    "stack": "The whole stack",
    "million": "A million items",
}
"""By module: the heading of its part of the page."""
PLOTS = {name: f"benchmarks.serving.{name}_plots" for name in PARTS}
TRIED = "tried.md"
"""A page of the report's folder that is written by hand."""
SIZES = ("full", "small", "smoke")
WORLDS = {"full": ("100k", "1m"), "small": ("10k",), "smoke": ("smoke",)}


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(SIZES))
@click.option("--work", required=True, type=click.Path(file_okay=False, path_type=Path), help="For worlds and JSON.")
@click.option(
    "--report", type=click.Path(file_okay=False, path_type=Path), help="Folder for README.md, its plots and JSON."
)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Only these parts; repeatable.")
def main(size: str, work: Path, report: Path | None, only: Sequence[str]) -> None:
    """Run the parts and write the page. Exit code 1 if a bar was missed or a part failed."""
    for scale in WORLDS[size]:
        if not run("benchmarks.serving.world", "--work", str(work), "--scale", scale):
            raise click.ClickException(f"the world of {scale} items could not be made")
    results = report or work / f"results-{size}"
    results.mkdir(parents=True, exist_ok=True)
    failed = [name for name in only or PARTS if not measured(name, size, work, results)]
    ran = [values for name, values in found(results).items() if name in (only or PARTS)]
    missed = [row["what"] for values in ran for row in values["rows"] if row["met"] is False]
    if report is not None:
        click.echo(write_page(report, size))
    if failed or missed:
        raise click.ClickException(
            "; ".join([*(f"{name} failed" for name in failed), *(f"missed: {m}" for m in missed)])
        )


def run(module: str, *words: str) -> bool:
    """Run a module of ours; whether it ended with code 0."""
    return subprocess.run([sys.executable, "-m", module, *words], check=False).returncode == 0


def measured(name: str, size: str, work: Path, results: Path) -> bool:
    """One part, its rows in a JSON file; those of an earlier run do not stand in for it."""
    (results / f"{name}.json").unlink(missing_ok=True)
    click.secho(f"\n{PARTS[name]}", bold=True)
    out = ("--size", size, "--work", str(work), "--out", str(results / f"{name}.json"))
    return run(f"benchmarks.serving.{name}", *out)


def found(results: Path) -> dict[str, dict[str, Any]]:
    """What the parts have left, by part."""
    paths = {name: results / f"{name}.json" for name in PARTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def write_page(report: Path, size: str) -> Path:
    """README.md of the folder: a table and plots of each part."""
    lines = [
        "# How fast the stack is",
        "",
        f"`make bench-serving` (size {size}) makes this page; each part is the output of the command under its "
        "heading, at the commit that stands there. "
        "Ratios are to floors and peers of the same run, medians with the 10th and 90th percentile. Times "
        "are of this machine only; alternatives that were tried are in the JSON beside this page.",
    ]
    parts = found(report)
    lines += ["", *summary([row for values in parts.values() for row in values["rows"]])]
    if (report / TRIED).exists():
        lines += ["", f"[What was tried, and why bars were missed]({TRIED})"]
    for name, values in parts.items():
        lines += [
            "",
            f"## {PARTS[name]}",
            "",
            f"`{values['command']}`, commit {values['commit']}, {values['machine']}.",
            "",
        ]
        lines += [f"![{PARTS[name]}]({file})" for file in drawn(name, values, report)]
        lines += ["", "| what | bar | measured | |", "|---|---|---|---|"]
        lines += [
            f"| {escaped(row['what'])} | {escaped(row['bar'])} | {escaped(row['measured'])} | {MARKS[row['met']]} |"
            for row in values["rows"]
        ]
    page = report / "README.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How many bars were met, and which were not."""
    judged = [row for row in rows if row["met"] is not None]
    missed = [row for row in judged if not row["met"]]
    measured = [f"- {row['what']}: {re.split('[;:]| [(]', row['measured'])[0]} (bar: {row['bar']})" for row in missed]
    return [f"{len(judged) - len(missed)} of {len(judged)} bars are met{'; missed:' if missed else '.'}", *measured]


def drawn(name: str, values: dict[str, Any], report: Path) -> list[str]:
    """Names of a part's plots, drawn now; none if it has no module for them."""
    try:
        module = importlib.import_module(PLOTS[name])
    except ModuleNotFoundError:
        return []
    files: list[str] = module.plots(values, report)
    return files


def escaped(text: str) -> str:
    """For a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
