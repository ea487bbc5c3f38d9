"""A report: one Markdown page, its plots (PNG) beside it, and the same figures as JSON.

The page is made from plain result objects: `pinrec evaluate --report` and `benchmarks/quality` hand in sections (see
`sections.py`), each of which makes tables and draws its plots. Under each stand its data set, users, seeds, interval,
command, commit and hardware.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from pinrec_core.eval.bootstrap import Interval

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Gain:
    """A relative change (0.1 = ten percent more), shown in percent."""

    value: Interval


Cell = str | int | float | Interval | Gain | None


@dataclass(frozen=True)
class Table:
    """One table; None is shown as a dash."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [self.header, tuple("---" for _ in self.header), *(tuple(map(shown, row)) for row in self.rows)]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"**{self.name}**\n\n{body}\n" if self.name else f"{body}\n"

    def plain(self) -> dict[str, Any]:
        """For JSON: a dict a row."""
        return {
            "name": self.name,
            "rows": [dict(zip(self.header, map(_plain, row), strict=True)) for row in self.rows],
        }


@dataclass(frozen=True)
class Sample:
    """What a section's figures rest on."""

    dataset: str
    users: int
    seeds: int
    command: str = ""
    """How to make these figures, where it is not the report's own command."""
    commits: tuple[str, ...] = ()
    """That trained the models, where it is not the report's own."""


class Section(Protocol):
    """A part of the page."""

    @property
    def title(self) -> str:
        """Its heading."""
        ...

    @property
    def note(self) -> str:
        """A paragraph before the tables; may be empty."""
        ...

    def sample(self) -> Sample | None:
        """None where each row says it."""
        ...

    def tables(self) -> list[Table]:
        """In order."""
        ...

    def draw(self, stem: Path) -> list[Path]:
        """Write plots whose paths begin with `stem`; may be none."""
        ...


@dataclass(frozen=True)
class Provenance:
    """Where and by what a report was made."""

    command: str
    commit: str
    hardware: str
    software: str
    made_at: str
    """UTC."""

    @classmethod
    def here(cls, command: str, commit: str | None = None) -> Provenance:
        """Of this process. The commit is read from git if not given; `unknown` outside of a repository."""
        return cls(
            command=command,
            commit=commit or _commit(),
            hardware=_hardware(),
            software=f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}",
            made_at=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        )


@dataclass(frozen=True)
class Report:
    """Everything on the page, in order."""

    title: str
    provenance: Provenance
    sections: Sequence[Section]
    introduction: str = ""


def write_report(folder: Path, report: Report, name: str = "report") -> Path:
    """Write `name`.md, `name`.json and the plots into `folder`, which is made; returns the page's path.

    Plots of an older report of that name are removed, so that none is left that no page shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.png"):
        old.unlink()
    page, plain = [_head(report)], []
    for number, section in enumerate(report.sections, start=1):
        plots = section.draw(folder / f"{name}-{number:02d}-{_slug(section.title)}")
        tables = section.tables()
        page.append(_section(section, tables, plots, report.provenance))
        plain.append(_plain_section(section, tables, plots))
    path = folder / f"{name}.md"
    path.write_text("\n".join(page))
    document = {"title": report.title, **asdict(report.provenance), "confidence": CONFIDENCE, "sections": plain}
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    return path


def shown(cell: Cell) -> str:
    """A cell as text: three decimals (small numbers two digits), intervals in brackets, gains in percent."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, Interval | Gain) and math.isnan(_within(cell).low):
        return shown(_within(cell).mean)  # nobody to draw again
    if isinstance(cell, Gain):
        mean, low, high = (f"{100 * value:+.1f}" for value in (cell.value.mean, cell.value.low, cell.value.high))
        return f"{mean} % [{low}, {high}]"
    if isinstance(cell, Interval):
        return f"{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]"
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) >= 0.1 or cell == 0 else f"{cell:.2g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _within(cell: Interval | Gain) -> Interval:
    return cell.value if isinstance(cell, Gain) else cell


def _head(report: Report) -> str:
    made = report.provenance
    lines = [
        f"# {report.title}\n",
        *([report.introduction + "\n"] if report.introduction else []),
        f"This page is the output of `{made.command}` at commit `{made.commit}`, {made.made_at} UTC, on",
        f"{made.hardware} ({made.software}). Figures in brackets are {100 * CONFIDENCE:.0f} % intervals: users are",
        "drawn again with replacement, and so are seeds where there are several.\n",
    ]
    return "\n".join(lines)


def _section(section: Section, tables: list[Table], plots: list[Path], made: Provenance) -> str:
    parts = [f"## {section.title}\n"]
    if section.note:
        parts.append(section.note + "\n")
    parts += [f"![{section.title}]({plot.name})\n" for plot in plots]
    parts += [table.markdown() for table in tables]
    if sample := section.sample():
        seeds = "1 seed" if sample.seeds == 1 else f"{sample.seeds} seeds"
        trained = f"models of {', '.join(sample.commits)}; page of" if sample.commits else "commit"
        parts.append(
            f"<sub>{sample.dataset}; {sample.users:,} users; {seeds}; {100 * CONFIDENCE:.0f} % intervals; "
            f"`{sample.command or made.command}`; {trained} {made.commit}; {made.hardware}</sub>\n"
        )
    return "\n".join(parts)


def _plain_section(section: Section, tables: list[Table], plots: list[Path]) -> dict[str, Any]:
    sample = section.sample()
    return {
        "title": section.title,
        "note": section.note,
        "sample": asdict(sample) if sample else None,
        "tables": [table.plain() for table in tables],
        "plots": [plot.name for plot in plots],
    }


def _plain(cell: Cell) -> Any:
    if isinstance(cell, Gain):
        return {"gain": _plain(cell.value)}
    if isinstance(cell, Interval):
        return {name: _plain(value) for name, value in asdict(cell).items()}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].rstrip("-")


def _commit() -> str:
    """Short hash, with `+` where files under version control differ from it."""
    found = _git("rev-parse", "--short=12", "HEAD")
    return "unknown" if found is None else found + ("+" if _git("status", "--porcelain", "-uno") else "")


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _hardware() -> str:
    """Processor, cores that this process may use, memory, accelerator."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        model = found.group(1)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{model}, {cores} cores, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
