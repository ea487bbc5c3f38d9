"""What the signal service promises, tried on the real process: durability, freshness, speed, and the daily batch view.

    python -m benchmarks.chaos.signals --work work/chaos-signals --report docs/figures

Prints a row for each promise with its bar; exit code 1 if one is missed.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import random
import threading
import time
from pathlib import Path

import click
import grpc

from benchmarks.chaos import batch_job, durability, ingest, reading
from benchmarks.chaos.parts import Part
from benchmarks.chaos.table import Row, finish, save, show
from benchmarks.chaos.world import World, fresh, make_world
from benchmarks.chaos.writers import Writer, histories
from pinrec_core.release import activate
from services.cli.up import processes
from services.proto.signals_pb2_grpc import SignalServiceStub

NUM_WRITERS = 3
LONGEST_LIFE_S = 1.0
"""The service is killed at a random moment of this long after it serves."""


@click.command()
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for all that it makes.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for chaos-signals.json.")
@click.option("--kills", default=200, show_default=True, help="How often the service is killed under load.")
@click.option("--ingest-seconds", default=20.0, show_default=True, help="How long events are offered at a fixed rate.")
@click.option("--log-events", default=10_000_000, show_default=True, help="Events in the log of the batch view job.")
@click.option("--spark-events", default=1_000_000, show_default=True, help="Events of the log that Spark reads too.")
def main(
    work: Path, report: Path | None, kills: int, ingest_seconds: float, log_events: int, spark_events: int
) -> None:
    """Try every promise and print the table."""
    world = make_world(work / "world")
    activate(world.releases, 1)
    rows = [show(row) for row in durability.power_loss(world, work / "power")]
    rows += [show(row) for row in ingest.measure(world, fresh(work / "ingest"), ingest_seconds)]
    rows += [show(row) for row in reading.measure(fresh(work / "reading"))]
    rows += [show(row) for row in batch_job.measure(work / "batch", log_events, spark_events)]
    rows += [show(row) for row in kill_under_load(world, fresh(work / "kills"), kills)]
    if report is not None:
        save(rows, report / "chaos-signals.json", "make chaos-signals")
    finish(rows)


def kill_under_load(world: World, folder: Path, kills: int) -> list[Row]:
    """SIGKILL the service at random moments while writers append; then ask for every history."""
    stack = world.stack(folder / "signals")
    service = Part(next(p for p in processes(stack) if p.name == "signals"), folder / "signals.log")
    address = f"{stack.host}:{stack.signals_port}"
    start_ms = int(time.time() * 1000) - 3_600_000
    writers = [Writer(address, 10_000 * (i + 1), start_ms, release=1) for i in range(NUM_WRITERS)]
    threads = [threading.Thread(target=writer.run) for writer in writers]
    moments = random.Random(0)
    service.start()
    for thread in threads:
        thread.start()
    with click.progressbar(range(kills), label="kills") as bar:
        for _ in bar:
            time.sleep(moments.uniform(0, LONGEST_LIFE_S))
            service.kill()
            service.start()
    for writer, thread in zip(writers, threads, strict=True):
        writer.stop.set()
        thread.join()
    lost, doubled, total = count_damage(address, writers)
    service.stop()
    repeats, reads, misses = (sum(getattr(w, name) for w in writers) for name in ("repeats", "reads", "misses"))
    figures = {"kills": kills, "acknowledged": total, "lost": lost, "doubled": doubled, "repeated_calls": repeats}
    return [
        Row(
            f"kill -9 of the signal service at random moments under load, {kills} times",
            "0 acknowledged events lost, 0 doubled in a history",
            f"{total:,} acknowledged, {lost} lost, {doubled} doubled; {repeats} calls failed and were repeated",
            lost == doubled == 0 and total > 0,
            figures,
        ),
        Row(
            "an acknowledged event is in the very next history",
            "always",
            f"{reads} reads right after an acknowledgement, {misses} without what was acknowledged",
            misses == 0 and reads > 0,
            {"reads": reads, "misses": misses},
        ),
    ]


def count_damage(address: str, writers: list[Writer]) -> tuple[int, int, int]:
    """Acknowledged events that no history holds, events that one holds twice or out of order, and all acknowledged."""
    lost = doubled = total = 0
    with grpc.insecure_channel(address) as channel:
        stub = SignalServiceStub(channel)
        for writer in writers:
            for user, count in writer.acknowledged.items():
                found = histories(stub, writer.release, [user])[0]
                lost += len(set(range(count)) - set(found))
                doubled += len(found) - len(set(found)) + (found != sorted(found))
                total += count
    return lost, doubled, total


if __name__ == "__main__":
    main()
