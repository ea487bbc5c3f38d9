"""Plot of the retrieval rows: milliseconds of a request and bytes of an index, by contender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

OURS, OTHERS, EXACT = "#2a6f97", "#8d99ae", "#c9ada7"


def plots(values: dict[str, Any], folder: Path) -> list[str]:
    """Draw into `folder`; names of the files."""
    worlds = [row["figures"] for row in values["rows"] if "contenders" in row["figures"]]
    tallest = max(len(world["contenders"]) for world in worlds)
    figure = Figure(figsize=(1.5 + 5.0 * len(worlds), 1.2 + 0.38 * tallest), layout="constrained")
    for place, world in enumerate(worlds):
        axes = figure.add_subplot(1, len(worlds), place + 1)
        contenders = sorted(world["contenders"].items(), key=lambda pair: -pair[1]["p50_ms"])
        for at, (name, one) in enumerate(contenders):
            colour = OURS if name.startswith("ours") else EXACT if name.startswith("exact") else OTHERS
            spread = [[one["p50_ms"] - one["p10_ms"]], [one["p90_ms"] - one["p50_ms"]]]
            axes.barh(at, one["p50_ms"], color=colour, xerr=spread, error_kw={"elinewidth": 0.8})
            said = f" {one['p50_ms']:.2f} ms, recall {one['request_recall']:.3f}, {one['bytes'] / 1e6:.0f} MB"
            axes.text(one["p90_ms"], at, said, va="center", fontsize=8)
        axes.set_yticks(range(len(contenders)), [name for name, _ in contenders], fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(right=40 * max(one["p90_ms"] for one in world["contenders"].values()))
        axes.set_xlabel("ms for 12 queries (p50, 10th to 90th percentile)")
        axes.set_title(f"{world['items']:,} items, {world['threads']} threads", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "retrieval.png", dpi=120)
    return ["retrieval.png"]
