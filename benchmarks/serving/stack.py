"""The whole stack beside its floors: hops, throughput, open loop, a simulated queue, and the service without a stack.

    python -m benchmarks.serving.stack --size small --work work/serving --out stack.json

Everything runs side by side on this machine, callers included, and takes turns: what is compared was measured within
the same seconds. A stage's own compute is told twice: as the stage says it in the answer to the same call, and as it
takes in a process of its own with the same threads.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

from pathlib import Path

import click
import numpy as np
import uvloop

from benchmarks.chaos.table import Row, save, show
from benchmarks.serving import stack_rows as rows
from benchmarks.serving.alone import PRECISION, choose_precision, stage_environment
from benchmarks.serving.empty_repository import VARIANTS, bytes_between_stages
from benchmarks.serving.memory import Memory
from benchmarks.serving.recorded import inputs_of
from benchmarks.serving.stack_load import at_rates, best_rps, loop_rows, naive_rows, open_rows, without_pause
from benchmarks.serving.stack_lone import lone_rows, one_at_a_time
from benchmarks.serving.stack_plan import CORES, MANY, PLANS, STAGE_NAMES, Plan
from benchmarks.serving.stack_rows import Lone, Loop
from benchmarks.serving.subjects import GATEWAY, Subjects, subjects
from benchmarks.serving.wire import ensemble_bytes
from benchmarks.serving.workload import NUM_CANDIDATES, request_of, resolved
from benchmarks.serving.world import make_world


@click.command()
@click.option("--size", default="small", show_default=True, type=click.Choice(list(PLANS)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder of worlds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file for the rows.")
def main(size: str, work: Path, out: Path) -> None:
    """Measure and print."""
    choose_precision()
    plan = PLANS[size]
    save(uvloop.run(measure(plan, work)), out, f"python -m benchmarks.serving.stack --size {size}")


async def measure(plan: Plan, work: Path) -> list[Row]:
    """All of it, in one run."""
    world = make_world(work, plan.scale)
    async with subjects(world, work / "stack") as found:
        memory = Memory(found.fleet)
        shown_rows = [show(setting_row(found))]
        lone = await one_at_a_time(found, plan)
        shown_rows += [show(row) for row in lone_rows(lone)]
        levels, batched = await without_pause(found, plan, memory)
        shown_rows += [show(row) for row in loop_rows(levels, batched)]
        capacity = best_rps(levels[GATEWAY])
        ours = await at_rates(found, GATEWAY, capacity, plan, batched)
        shown_rows += [show(row) for row in open_rows(ours)]
        shown_rows += [show(row) for row in await naive_rows(found, plan, ours)]
        shown_rows += [show(row) for row in await cost_rows(found, lone, levels[GATEWAY][MANY], memory)]
    return shown_rows


def setting_row(found: Subjects) -> Row:
    """What was served, and with what."""
    lengths = [int(given["sequence_length"][0]) for given in inputs_of(found.messages, "generate")]
    kept = [len(given["allocation"]) for given in inputs_of(found.messages, "retrieve")]
    environment = stage_environment(found.world.releases)
    threads, precision = environment["OMP_NUM_THREADS"], environment.get(PRECISION, "auto")
    spec = found.world.spec
    measured = (
        f"{spec.items:,} items, {spec.users:,} users, histories of {np.mean(lengths):.0f} events on average, "
        f"{np.mean(kept):.0f} embeddings searched for {NUM_CANDIDATES} candidates; {CORES} cores, threads of a stage: "
        f"{threads}; the decoder's products in {precision}; canaries, a call a second, run beside everything"
    )
    figures = {"lengths": lengths, "embeddings": kept, "threads": int(threads), "cores": CORES, "precision": precision}
    return Row("what is served", "-", measured, None, figures)


async def cost_rows(found: Subjects, lone: Lone, many: list[Loop], memory: Memory) -> list[Row]:
    """CPU, memory, bytes."""
    stack, world = found.fleet.stack, found.world
    address = f"{stack.host}:{stack.triton_grpc_port}"
    asked, answered = await ensemble_bytes(address, resolved(0, world.spec.users, world.release()))
    recorded = {stage: inputs_of(found.messages, stage) for stage in STAGE_NAMES}
    between = {variant.name: bytes_between_stages(variant, recorded) for variant in VARIANTS}
    sizes = {
        "to the gateway": float(request_of(0, world.spec.users).ByteSize()),
        "from the gateway": float(found.answer_bytes),
        "to Triton": float(asked),
        "from Triton": float(answered),
        "into the stages": between[VARIANTS[0].name],
    }
    int8, float32, int8_wide, float32_wide = (variant.name for variant in VARIANTS)
    return [
        rows.cpu_row(many),
        rows.memory_row(memory.peaks_mb),
        rows.bytes_row(sizes),
        *(
            rows.transport_row(what, lone.medians(one), lone.medians(other), between[one], between[other])
            for what, one, other in (
                (f"content of {world.release().content_dim}", int8, float32),
                (f"content of {VARIANTS[2].content_dim}", int8_wide, float32_wide),
            )
        ),
    ]


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.serving.stack")
