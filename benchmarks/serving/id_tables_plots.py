"""Plots of the ID tables' rows: latency of 256 rows, and what each process adds to a host's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, GREY = "#2a6f97", "#8d99ae"


def plots(values: dict[str, Any], folder: Path) -> list[str]:
    """Draw into `folder`; names of the files."""
    figures = [row["figures"] for row in values["rows"]]
    [contenders] = [one["contenders"] for one in figures if "contenders" in one]
    shared = {row["what"].split(" of ")[0]: row["figures"] for row in values["rows"] if "added" in row["figures"]}
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    _latency(figure.add_subplot(1, 2, 1), contenders)
    _added(figure.add_subplot(1, 2, 2), shared)
    figure.savefig(folder / "id_tables.png", dpi=120)
    return ["id_tables.png"]


def _latency(axes: Axes, contenders: dict[str, Any]) -> None:
    for at, one in enumerate(reversed(contenders.values())):
        axes.barh(at, one["p50_ms"], color=BLUE)
        axes.plot([one["p50_ms"], one["p99_ms"]], [at, at], color=GREY, marker="|")
    axes.set_yticks(range(len(contenders)), list(reversed(contenders)), fontsize=8)
    axes.set_xlabel("milliseconds for 256 items, one thread, warm: p50 (bar) to p99 (line)")
    axes.set_title("ID embedding", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _added(axes: Axes, shared: dict[str, Any]) -> None:
    width = 0.8 / max(len(shared), 1)
    for place, (what, one) in enumerate(shared.items()):
        added = [value / 1e6 for value in one["added"]]
        at = [number + place * width for number in range(len(added))]
        axes.bar(at, added, width, label=f"{what}, {one['bytes'] / 1e6:.0f} MB", color=(BLUE, GREY)[place % 2])
        for x, value in zip(at, added, strict=True):
            axes.text(x, value, f"{value:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(one["added"])), [f"process {number + 1}" for number in range(len(one["added"]))])
    axes.set_ylabel("MB added (PSS)")
    axes.set_title("Opening the same release again", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
