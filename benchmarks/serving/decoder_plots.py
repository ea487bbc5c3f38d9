"""Plots of the decoder's rows: time by embeddings a step, and every way to roll out beside its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.serving.timing import median, spread


def plots(values: dict[str, Any], folder: Path) -> list[str]:
    """Draw what the rows hold into `folder`; names of the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row["figures"] for row in values["rows"]]
    steps = next((row["times_ms"] for row in rows if row.keys() == {"ratio", "times_ms"}), {})
    floors = [row for row in rows if "what" in row]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for at, times in enumerate(steps.values()):
        low, high = spread(times)
        middle = median(times)
        left.bar(at, middle, yerr=[[middle - low], [high - middle]], color="tab:blue", capsize=3)
        left.text(at, middle, f" {middle:.1f}", va="bottom", ha="center")
    left.set_xticks(range(len(steps)), [f"{96 // int(offsets)} x {offsets}" for offsets in steps])
    left.set(
        xlabel="steps x embeddings a step", ylabel="ms, prefill included", title="96 embeddings an outcome, batch 1"
    )
    names = [f"{row['what']}\nbatch {row['batch']}\n{row['dtype']}" for row in floors]
    right.bar(range(len(floors)), [row["ratio"][0] for row in floors], color="tab:orange")
    right.axhline(1.0, color="black", linewidth=0.8)
    right.set_xticks(range(len(floors)), names, fontsize=6)
    right.set(ylabel="times the bare matrix products", title="What is not arithmetic")
    figure.savefig(folder / "decoder.png", dpi=110)
    plt.close(figure)
    return ["decoder.png"]
