"""The plots of a report, as PNG files: drawn without a display, each from numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pinrec_core.eval.bootstrap import Interval

_BLUE, _GREY, _DARK = "#2a6f97", "#8d99ae", "#222222"
_DPI = 120


def point_ranges(path: Path, panels: Sequence[tuple[str, Sequence[tuple[str, Interval]]]]) -> Path:
    """Panels side by side, a row a model: the mean as a point and its interval as a line."""
    longest = max(len(rows) for _, rows in panels)
    figure = Figure(figsize=(1.6 + 3.6 * len(panels), 1.0 + 0.36 * longest), layout="constrained")
    for place, (title, rows) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        at = np.arange(len(rows), dtype=np.float64)[::-1]
        _error_bars(axes, at, [value for _, value in rows], horizontal=True)
        labels = [label for label, _ in rows] if place == 0 else [""] * len(rows)
        axes.set_yticks(at, labels)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_title(title, fontsize=10, loc="left")
        _lighten(axes)
    return _saved(figure, path)


def heat_map(
    path: Path,
    rows: Sequence[str],
    columns: Sequence[str],
    values: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    title: str,
    centred: bool,
) -> Path:
    """Rows desired, columns actual: colour and text a cell; `centred` puts white at 0, else at the smallest value."""
    figure = Figure(figsize=(2.6 + 1.7 * len(columns), 1.5 + 0.75 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    known = np.abs(values[np.isfinite(values)])
    reach = float(known.max()) if known.size and known.max() > 0 else 1.0
    image = axes.imshow(
        values, cmap="RdBu" if centred else "Blues", vmin=-reach if centred else 0.0, vmax=reach, aspect="auto"
    )
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            dark = abs(values[row, column]) > 0.6 * reach
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else _DARK)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("actual outcome of the target")
    axes.set_ylabel("desired outcome")
    axes.set_title(title, fontsize=10, loc="left")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _saved(figure, path)


def curves(path: Path, x_label: str, x: Sequence[float], panels: Sequence[tuple[str, Sequence[Interval]]]) -> Path:
    """Panels side by side over one x axis in powers of two: a line with intervals each, from zero up."""
    figure = Figure(figsize=(3.6 * len(panels), 3.2), layout="constrained")
    for place, (title, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        axes.set_xscale("log", base=2)
        axes.plot(x, [value.mean for value in values], color=_BLUE, linewidth=1.5)
        _error_bars(axes, np.asarray(x, dtype=np.float64), values, horizontal=False)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(x_label)
        axes.set_title(title, fontsize=10, loc="left")
        _lighten(axes)
    return _saved(figure, path)


def _error_bars(axes: Axes, at: NDArray[np.floating], values: Sequence[Interval], horizontal: bool) -> None:
    means = np.array([value.mean for value in values])
    ends = np.array([[value.mean - value.low, value.high - value.mean] for value in values]).reshape(-1, 2).T
    ends = np.nan_to_num(np.maximum(ends, 0.0))  # a mean may lie a rounding error outside of its interval
    style = {"fmt": "o", "color": _BLUE, "ecolor": _GREY, "elinewidth": 2, "markersize": 5}
    if horizontal:
        axes.errorbar(means, at, xerr=ends, **style)
    else:
        axes.errorbar(at, means, yerr=ends, **style)


def _lighten(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=_DPI)
    return path
