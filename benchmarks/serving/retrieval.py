"""The retrieve stage's search: the 12 embeddings of one request among a million items, beside exact search and peers.

Vectors and queries are those of a trained model on the synthetic world; every contender has the same threads and finds
at least the same share of the exact top 100.

    python -m benchmarks.serving.retrieval --size small --work work/serving --out retrieval.json
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from benchmarks.chaos.table import Row, save, show
from benchmarks.serving import retrieval_indexes as indexes
from benchmarks.serving.contenders import Contender, Measured, alone, in_turns
from benchmarks.serving.retrieval_inputs import NUM_QUERIES, Inputs, K, make_inputs
from benchmarks.serving.timing import median, ratio, shown, shown_ratio
from pinrec_core.retrieve.tuning import measure_recall

CODES = ("pq4", "sq8", "fp16", "float32")
TARGET = 0.98
BAR = 0.1
OURS, SQ8, PLAIN = "ours, pq4", "ours, sq8", "faiss index.search, sq8"
EXACT, PRODUCTS = "exact Flat", "exact Flat, one product"


@dataclass(frozen=True)
class Size:
    """Worlds and repeats."""

    scales: tuple[str, ...]
    rounds: int
    requests: int
    """Of a round."""
    recorded: int = 64
    """Different requests."""
    brief: tuple[str, ...] = ()
    """Scales at which only two codes and one graph are built: of a million items a graph takes minutes."""


SIZES = {
    "full": Size(("100k", "1m"), rounds=15, requests=8, brief=("1m",)),
    "small": Size(("10k",), rounds=10, requests=8),
    "smoke": Size(("smoke",), rounds=2, requests=2, recorded=8),
}


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of worlds and indexes.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file for the rows.")
def main(size: str, work: Path, out: Path) -> None:
    """Measure and print."""
    rows = [show(row) for scale in SIZES[size].scales for row in measure(work, scale, SIZES[size])]
    save(rows, out, f"python -m benchmarks.serving.retrieval --size {size}")


def measure(work: Path, scale: str, size: Size) -> list[Row]:
    """All contenders on one world."""
    inputs = alone(make_inputs, work, scale, size.recorded)
    facts, contenders = prepare(inputs, brief=scale in size.brief)
    measured = in_turns(contenders, size.rounds, size.requests, answers=size.recorded)
    figures = {name: {**facts.get(name, {}), **figures_of(measured, name, inputs)} for name in measured.times}
    world = {"items": len(inputs.vectors), "dim": inputs.vectors.shape[1], "k": K, "threads": indexes.THREADS}
    return rows_of(measured, figures, {"world": scale, **world, **inputs.made}, barred=scale == "1m")


def prepare(inputs: Inputs, brief: bool) -> tuple[dict[str, indexes.Facts], list[Contender]]:
    """Build what is missing, each in a process of its own."""
    facts, contenders = {}, []
    for codes in CODES[:2] if brief else CODES:
        folder, name = inputs.folder / f"ours-{codes}", f"ours, {codes}"
        facts[name] = alone(indexes.built, indexes.build_ours, inputs, folder, codes, TARGET)
        contenders.append(Contender(name, indexes.open_ours, (inputs, folder)))
    sq8 = inputs.folder / "ours-sq8"
    for name, opener, args in (
        (PLAIN, indexes.open_plain, ()),
        ("ours, sq8, cells by products", indexes.open_with_cells, (0,)),
        ("ours, sq8, cells by the graph", indexes.open_with_cells, (2,)),
    ):
        facts[name] = {"bytes": facts[SQ8]["bytes"], "build_s": facts[SQ8]["build_s"]}
        contenders.append(Contender(name, opener, (inputs, sq8, *args)))
    for name, by_products in ((EXACT, False), (PRODUCTS, True)):
        facts[name] = {"bytes": inputs.vectors.nbytes, "build_s": 0.0}
        contenders.append(Contender(name, indexes.open_exact, (inputs, sq8, by_products)))
    for name, build, args, opener in (
        ("hnswlib", indexes.build_hnswlib, (TARGET,), indexes.open_hnswlib),
        ("usearch, f32", indexes.build_usearch, (TARGET, "f32"), indexes.open_usearch),
        ("usearch, i8", indexes.build_usearch, (TARGET, "i8"), indexes.open_usearch),
    )[: 1 if brief else None]:
        if find_spec(name.split(",")[0]) is None:
            click.echo(f"{name} is not installed: pip install 'pinrec[bench]'")
            continue
        folder = inputs.folder / name.replace(", ", "-")
        facts[name] = alone(indexes.built, build, inputs, folder, *args)
        contenders.append(Contender(name, opener, (inputs, folder)))
    return facts, contenders


def figures_of(measured: Measured, name: str, inputs: Inputs) -> dict[str, Any]:
    """Milliseconds of a request, recall on real requests, ratio to exact search."""
    requests = inputs.requests[: len(measured.answers[name])]
    recalls = [
        measure_recall(inputs.vectors, queries, found, kth)
        for queries, found, kth in zip(requests, measured.answers[name], inputs.kth_requests, strict=False)
    ]
    over_exact = ratio(measured.times, name, fastest_exact(measured))
    return {**measured.percentiles(name), "request_recall": sum(recalls) / len(recalls), "over_exact": over_exact}


def fastest_exact(measured: Measured) -> str:
    """Which of the two exact searches was faster: the floor is no straw man."""
    return min((EXACT, PRODUCTS), key=lambda name: median(measured.times[name]))


def rows_of(measured: Measured, figures: dict[str, Any], world: dict[str, Any], barred: bool) -> list[Row]:
    """The bar, what our own code adds, peers at equal recall, other codes."""
    items, ours = f"{world['items']:,} items", figures[OURS]
    recall, times = ours["request_recall"], measured.times
    over_exact = ours["over_exact"][0]
    exact = fastest_exact(measured)
    rows = [
        Row(
            f"{NUM_QUERIES} queries of one request, {items}: our index (4-bit codes, INT8 rows, mapped) / {exact}",
            f"<= {BAR} at recall@{K} >= {TARGET}" if barred else "-",
            f"{shown_ratio(ours['over_exact'])} at recall {recall:.4f}: {shown(times[OURS])} / {shown(times[exact])}",
            over_exact <= BAR and recall >= TARGET if barred else None,
            {**world, "contenders": figures, "rounds": times},
        ),
        Row(
            f"our search of 8-bit codes / index.search of the same index, {items}",
            "-",
            shown_ratio(ratio(times, SQ8, PLAIN)),
            None,
            {"ratio": ratio(times, SQ8, PLAIN)},
        ),
    ]
    for name, one in figures.items():
        if name not in (OURS, PLAIN, EXACT, PRODUCTS):
            rows.append(
                Row(
                    f"our index / {name}, {items}",
                    "-",
                    f"{shown_ratio(ratio(times, OURS, name))}; it: {shown(times[name])}, recall "
                    f"{one['request_recall']:.4f}, {one['bytes'] / 1e6:.0f} MB, built in {one['build_s']:.0f} s; ours: "
                    f"{ours['bytes'] / 1e6:.0f} MB, {ours['build_s']:.0f} s",
                    None,
                    {"ratio": ratio(times, OURS, name)},
                )
            )
    return rows


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.retrieval")
