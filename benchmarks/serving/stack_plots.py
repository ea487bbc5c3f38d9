"""Plots of the stack's rows: where a lone call's time goes, callers without a pause, and arrivals that do not wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.serving.timing import median, spread

_DPI = 110
_COLOURS = {
    "gateway": "tab:blue",
    "ensemble": "tab:green",
    "naive service": "tab:red",
    "naive service, requests at once": "tab:orange",
}
_QUEUE_COLOURS = ("tab:grey", "tab:purple")
_LIMIT_MS = 100.0

Figures = list[dict[str, Any]]
"""Of the rows of one kind."""


def plots(values: dict[str, Any], folder: Path) -> list[str]:
    """Draw what the rows hold into `folder`; names of the files."""
    kinds: dict[str, Figures] = {}
    for row in values["rows"]:
        kinds.setdefault(row["figures"].get("kind", ""), []).append(row["figures"])
    drawn = {
        "stack-hops.png": hops(kinds["stage"], kinds["hops"][0], kinds["lone"]),
        "stack-loops.png": loops(kinds["loop"], kinds["saturation"][0]),
        "stack-open.png": open_loop(kinds["open"]),
    }
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=_DPI)
    return list(drawn)


def hops(stages: Figures, added: dict[str, Any], lone: Figures) -> Figure:
    """Medians of one call at a time, stage by stage and hop by hop."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.add_subplot()
    by_row = {
        "stages in processes of their own": {stage["stage"]: median(stage["alone_ms"]) for stage in stages},
        "in the stack": {
            **{stage["stage"]: median(stage["inside_ms"]) for stage in stages},
            "Triton's hops": median(added["hops_ms"]),
            "gateway and its hop": max(0.0, median(added["gateway_ms"])),
        },
    }
    colours: dict[str, str] = {}
    for at, parts in enumerate(by_row.values()):
        left = 0.0
        for name, ms in parts.items():
            label = name if name not in colours else None
            colour = colours.setdefault(name, f"C{len(colours)}")
            axes.barh(at, ms, left=left, color=colour, label=label)
            left += ms
        axes.text(left, at, f" {left:.1f} ms", va="center")
    names = list(by_row)
    for one in lone:
        axes.barh(len(names), median(one["median_ms"]), color="tab:grey")
        axes.text(median(one["median_ms"]), len(names), f" {median(one['median_ms']):.1f} ms", va="center")
        names.append(one["subject"])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="ms, p50, one call at a time", title="Where the time of a call goes")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def loops(levels: Figures, saturation: dict[str, Any]) -> Figure:
    """Answers a second and latency by the number of callers."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    rates, latencies = figure.subplots(1, 2)
    for subject, colour in _COLOURS.items():
        mine = [level for level in levels if level["subject"] == subject]
        if not mine:
            continue
        callers = [level["callers"] for level in mine]
        middles = [median(level["rps"]) for level in mine]
        lows, highs = zip(*(spread(level["rps"]) for level in mine), strict=True)
        errors = [
            [middle - low for middle, low in zip(middles, lows, strict=True)],
            [high - middle for middle, high in zip(middles, highs, strict=True)],
        ]
        rates.errorbar(callers, middles, yerr=errors, marker="o", color=colour, label=subject, capsize=3)
        for percent, style in (("p50", "-"), ("p99", "--")):
            latencies.plot(
                callers,
                [level[percent] for level in mine],
                style,
                marker="o",
                color=colour,
                label=f"{subject} {percent}",
            )
    slowest = median(saturation["resources"][saturation["slowest"]])
    rates.axhline(slowest, color="black", linewidth=0.8, linestyle=":", label=f"{saturation['slowest']}, alone")
    rates.set(ylabel="full answers/s", title="Throughput", ylim=(0, 1.4 * slowest))
    latencies.set(ylabel="ms", yscale="log", title="Latency")
    for axes in (rates, latencies):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("callers without a pause")
        _legend(axes)
    return figure


def open_loop(rates: Figures) -> Figure:
    """Latency by the rate of Poisson arrivals, beside the simulated queues."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for subject, colour in _COLOURS.items():
        mine = [rate for rate in rates if rate["subject"] == subject and "p99" in rate]
        for percent, style in (("p50", "-"), ("p99", "--")):
            if mine:
                sent = [rate["sent_rps"] for rate in mine]
                axes.plot(
                    sent,
                    [rate[percent] for rate in mine],
                    style,
                    marker="o",
                    color=colour,
                    label=f"{subject} {percent}",
                )
        queues = mine[0]["queue"] if mine else {}
        for name, queue_colour in zip(queues, _QUEUE_COLOURS, strict=False):
            p99s = [rate["queue"][name]["p99"] for rate in mine]
            axes.plot(sent, p99s, ":", marker="x", color=queue_colour, label=f"simulated queue p99, {name}")
    axes.axhline(_LIMIT_MS, color="black", linewidth=0.8)
    axes.set(xlabel="requests/s (Poisson)", ylabel="ms from the scheduled send", yscale="log", title="Open loop")
    _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
