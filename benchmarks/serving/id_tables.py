"""The ID embedding, and what is held in memory once however many processes there are.

Rows of 256 items on one thread beside the bare products; tables in shards, in INT8, and of ten billion parameters; what
further processes add; the signal store's bytes.

    python -m benchmarks.serving.id_tables --size small --work work/serving --out id_tables.json
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.chaos.table import Row, save, show
from benchmarks.serving import signal_bytes
from benchmarks.serving.contenders import Contender, Task, alone, in_turns
from benchmarks.serving.shared_pages import added_bytes, make_content, make_id_tables, read_content, read_id_tables
from benchmarks.serving.timing import ratio, shown_ratio
from benchmarks.serving.world import ServingWorld, make_world

ROWS = 256
"""Item ids of a request."""
P99_BAR_MS, ADDED_BAR, STORE_BAR = 2.0, 0.05, 1.3
REQUESTS = 64
"""Different ones."""
PROCESSES = 3
OURS, FLOOR, SHARDED, INT8, BIG = "ours", "bare products", "8 shards", "INT8 rows", "10 billion parameters"


@dataclass(frozen=True)
class Size:
    """Worlds and repeats."""

    scale: str
    rounds: int
    requests: int
    """Of a round."""
    parameters: int
    """Of the big table."""
    realtime_events: int
    test_users: int
    """That recall with INT8 rows is counted on."""


SIZES = {
    "full": Size("100k", rounds=20, requests=100, parameters=10_000_000_000, realtime_events=1_000_000, test_users=500),
    "small": Size("10k", rounds=10, requests=50, parameters=10_000_000_000, realtime_events=200_000, test_users=200),
    "smoke": Size("smoke", rounds=2, requests=10, parameters=100_000_000, realtime_events=10_000, test_users=20),
}


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of worlds and tables.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file for the rows.")
def main(size: str, work: Path, out: Path) -> None:
    """Measure and print."""
    plan = SIZES[size]
    world = alone(make_world, work, plan.scale)
    folder, big = work / plan.scale / "id-tables", work / f"big-table-{plan.parameters}"
    shutil.rmtree(folder, ignore_errors=True)
    alone(recut, world.release().path, folder)
    alone(make_big, big, plan.parameters)
    rows = [show(row) for row in latency(world, folder, big, plan)]
    rows += [show(rounding(world, plan)), show(sparse(big, plan))]
    rows += [show(row) for row in shared(folder / "shared")]
    rows += [show(row) for row in signal_store(world, folder / "realtime", plan)]
    save(rows, out, f"python -m benchmarks.serving.id_tables --size {size}")


def recut(release: Path, folder: Path) -> None:
    """The release's table in other files."""
    import torch

    from pinrec_core.model.id_tables import open_shards, write_tables

    shards, _ = open_shards(release / "id_tables")
    table = torch.cat([shard.float() for shard in shards]).numpy()
    for name, num_shards, codes in ((SHARDED, 8, "fp16"), (INT8, 1, "int8")):
        (folder / name).mkdir(parents=True)
        shutil.copyfile(release / "id_embedding.pt", folder / name / "id_embedding.pt")
        write_tables(table, folder / name / "id_tables", num_shards, codes)  # type: ignore[arg-type]


def make_big(folder: Path, parameters: int) -> None:
    """See `big_table`, which imports torch."""
    from benchmarks.serving.big_table import make_big_table

    make_big_table(folder, parameters, REQUESTS)


def request_ids(world: ServingWorld) -> NDArray[np.int64]:
    """Items of requests: int64 [64, 256]."""
    ids = world.release().items.ids
    return np.random.default_rng(0).choice(ids, (REQUESTS, ROWS))


def open_tables(folder: Path, ids: NDArray[np.int64]) -> Task:
    """The stage's embedder on one thread."""
    import torch

    from pinrec_core.model.id_embedding import IdEmbedder

    torch.set_num_threads(1)
    embedder = IdEmbedder.load(folder)
    for one in ids:
        embedder.embed(one)
    return lambda i: embedder.embed(ids[i % len(ids)])


def open_big(folder: Path) -> Task:
    """See `big_table`."""
    from benchmarks.serving.big_table import open_big_table

    return open_big_table(folder)


def open_floor(folder: Path, ids: NDArray[np.int64]) -> Task:
    """The same rows and the same products and nothing else: rows known beforehand, no bias, no norm."""
    import torch

    from pinrec_core.model.id_embedding import hash_rows
    from pinrec_core.model.id_tables import open_shards

    torch.set_num_threads(1)
    module = torch.jit.load(str(folder / "id_embedding.pt"))
    weights = [weight.T.contiguous() for weight in module.state_dict().values() if weight.dim() == 2]
    [table], _ = open_shards(folder / "id_tables")
    rows = [hash_rows(torch.from_numpy(one), module.num_hashes, module.rows_per_hash).reshape(-1) for one in ids]

    @torch.inference_mode()
    def products(i: int) -> None:
        hidden = table.index_select(0, rows[i % len(rows)]).float().reshape(ROWS, -1)
        for weight in weights:
            hidden = hidden @ weight

    for number in range(len(rows)):
        products(number)
    return products


def latency(world: ServingWorld, folder: Path, big: Path, plan: Size) -> list[Row]:
    """256 rows, warm, one thread, every variant in its own process."""
    release, ids = world.release().path, request_ids(world)
    config = world.release().config.model
    measured = in_turns(
        [
            Contender(OURS, open_tables, (release, ids)),
            Contender(FLOOR, open_floor, (release, ids)),
            Contender(SHARDED, open_tables, (folder / SHARDED, ids)),
            Contender(INT8, open_tables, (folder / INT8, ids)),
            Contender(BIG, open_big, (big,)),
        ],
        plan.rounds,
        plan.requests,
    )
    figures = {name: measured.percentiles(name) for name in measured.times}
    p99 = figures[OURS]["p99_ms"]
    size = f"{ROWS} rows x {config.num_hashes} hashes x {config.hash_dim} + MLP, one thread, warm"
    rows = [
        Row(
            f"ID embedding of {size}",
            f"p99 <= {P99_BAR_MS:.0f} ms",
            f"p50 {figures[OURS]['p50_ms']:.3f} ms, p99 {p99:.3f} ms; "
            f"{shown_ratio(ratio(measured.times, OURS, FLOOR))} of the bare products",
            p99 <= P99_BAR_MS,
            {"contenders": figures, "rounds": measured.times},
        )
    ]
    for name, what in ((SHARDED, SHARDED), (INT8, INT8), (BIG, f"{plan.parameters:,} parameters")):
        rows.append(
            Row(
                f"the same, {what}",
                f"p99 <= {P99_BAR_MS:.0f} ms",
                f"p50 {figures[name]['p50_ms']:.3f} ms, p99 {figures[name]['p99_ms']:.3f} ms; "
                f"{shown_ratio(ratio(measured.times, name, OURS))} of one FP16 file",
                figures[name]["p99_ms"] <= P99_BAR_MS,
            )
        )
    return rows


def rounding(world: ServingWorld, plan: Size) -> Row:
    """What INT8 rows save and cost."""
    found = alone(recall_by_codes, world, plan.test_users)
    half, byte = found["fp16"], found["int8"]
    return Row(
        f"INT8 rows instead of FP16: unordered recall@10 of {plan.test_users} test users",
        "-",
        f"{byte['recall']:.4f} against {half['recall']:.4f}, share of targets {byte['targets']:.4f} against "
        f"{half['targets']:.4f}, at {byte['row_bytes'] / half['row_bytes']:.3f}x the bytes",
        None,
        found,
    )


def recall_by_codes(world: ServingWorld, users: int) -> dict[str, Any]:
    """Recall of the trained model when its table is rounded as an export rounds it."""
    import torch

    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.eval.evaluate import evaluate
    from pinrec_core.model.id_tables import decode_rows, encode_rows
    from pinrec_core.train.checkpoint import load_checkpoint

    model, config, _ = load_checkpoint(world.work / world.scale / "run")
    dataset = open_dataset(world.data, config)
    test_users = dataset.split(config).test[:users]
    assert model.id_embedding is not None
    weight, found = model.id_embedding.table.weight, {}
    table = weight.detach().numpy().copy()
    for codes in ("fp16", "int8"):
        rows = torch.from_numpy(encode_rows(table, codes))  # type: ignore[arg-type]
        row_bytes = rows.shape[1]
        with torch.no_grad():
            weight.copy_(decode_rows(rows.view(torch.float16) if codes == "fp16" else rows))
        recall = evaluate(model, dataset, test_users)
        found[codes] = {
            "recall": recall["unordered_recall"],
            "targets": recall["target_recall"],
            "row_bytes": row_bytes,
        }
    return found


def cold(folder: Path) -> dict[str, Any]:
    """See `big_table`."""
    from benchmarks.serving.big_table import cold_and_warm

    return cold_and_warm(folder)


def sparse(big: Path, plan: Size) -> Row:
    """A table that no memory holds."""
    found = alone(cold, big)
    page_bytes = 4_096 * found["rows_read"]
    right = found["largest_error"] <= 2e-3  # FP16 answers
    return Row(
        f"ID table of {plan.parameters:,} parameters ({found['apparent_bytes'] / 1e9:.1f} GB, "
        f"{found['disk_bytes'] / 1e6:.0f} MB of it written)",
        "right rows; no page of others in memory",
        f"resident {found['resident_bytes'] / 1e6:.0f} MB after {found['rows_read']:,} rows (a page each: "
        f"{page_bytes / 1e6:.0f} MB), none when opened; p50 / p99 of {ROWS} items cold "
        f"{found['cold_ms'][0]:.1f} / {found['cold_ms'][1]:.1f} ms, a second time {found['warm_ms'][0]:.2f} / "
        f"{found['warm_ms'][1]:.2f} ms",
        right and found["resident_bytes_opened"] == 0 and found["resident_bytes"] <= page_bytes,
        found,
    )


def shared(folder: Path) -> list[Row]:
    """What further processes add when they open the same tables."""
    rows = []
    for what, make, read in (
        ("ID tables", make_id_tables, read_id_tables),
        ("content rows", make_content, read_content),
    ):
        num_bytes = alone(make, folder / what)
        first, *others = added_bytes(read, (folder / what,), PROCESSES)
        shares = [one / num_bytes for one in others]
        rows.append(
            Row(
                f"{what} of {num_bytes / 1e6:.0f} MB, read wholly by {PROCESSES} processes (PSS)",
                f"each further process adds < {ADDED_BAR:.0%}",
                f"the first adds {first / 1e6:.1f} MB, the others "
                + ", ".join(f"{one / 1e6:.2f} MB ({share:.1%})" for one, share in zip(others, shares, strict=True)),
                first >= 0.9 * num_bytes and max(shares) < ADDED_BAR,
                {"bytes": num_bytes, "added": [first, *others]},
            )
        )
    return rows


def signal_store(world: ServingWorld, folder: Path, plan: Size) -> list[Row]:
    """Bytes of the views against bytes of their rows."""
    batch = alone(signal_bytes.batch_view_bytes, world.batch_views)
    realtime = alone(signal_bytes.realtime_bytes, world.batch_views, folder, plan.realtime_events)
    return [
        _store_row("batch view, mapped arrays", batch, batch["mapped"], f"; its Parquet {batch['parquet']:,} B"),
        _store_row(
            "realtime view, RocksDB on disk",
            realtime,
            realtime["disk"],
            f"; {realtime['disk_before_flush']:,} B while the newest lie in the log, which holds 64 MB at most",
        ),
    ]


def _store_row(what: str, found: dict[str, Any], held: int, more: str) -> Row:
    share = held / found["rows"]
    return Row(
        f"{what}: bytes over those of its rows ({found['events']:,} events, {found['users']:,} users)",
        f"<= {STORE_BAR}",
        f"{share:.3f} ({held / found['events']:.1f} B an event){more}",
        share <= STORE_BAR,
        {**found, "ratio": share},
    )


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.id_tables")
