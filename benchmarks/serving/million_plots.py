"""Plots of the rows of a million items: the start of each process, its memory, latency by callers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving.timing import median, spread


def plots(values: dict[str, Any], folder: Path) -> list[str]:
    """Draw what the rows hold into `folder`; names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figures = [row["figures"] for row in values["rows"]]
    starts = {one["kind"]: one["startup_s"] for one in figures if "startup_s" in one}
    memory = [one["pss_mb"] for one in figures if "pss_mb" in one][-1]
    latencies = [one for one in figures if "callers" in one]
    drawn, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    below = np.zeros(len(starts))
    for part in next(iter(starts.values())):
        seconds = [median(parts[part]) for parts in starts.values()]
        left.bar(list(starts), seconds, bottom=below, label=part)
        below += seconds
    left.set(ylabel="seconds until ready", title="Start, one after another")
    left.legend(fontsize=8)
    names = sorted(memory, key=lambda name: memory[name])
    middle.barh(names, [memory[name] for name in names], color="tab:green")
    middle.set(xlabel="MB (PSS)", title=f"Memory: {sum(memory.values()):,.0f} MB")
    for name, color in (("p50_ms", "tab:blue"), ("p99_ms", "tab:red")):
        lows, highs = zip(*(spread(one[name]) for one in latencies), strict=True)
        middles = [median(one[name]) for one in latencies]
        errors = [np.subtract(middles, lows), np.subtract(highs, middles)]
        callers = [one["callers"] for one in latencies]
        right.errorbar(callers, middles, yerr=errors, color=color, marker="o", capsize=3, label=name.split("_")[0])
    right.set(xlabel="callers without a pause", ylabel="ms", title="GetCandidates", ylim=(0, None))
    right.legend()
    drawn.savefig(folder / "million.png", dpi=110)
    plt.close(drawn)
    return ["million.png"]
