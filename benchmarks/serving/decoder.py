"""The generate stage alone: against its own matrix products, Hugging Face's GPT-2, no cache, and one embedding a step.

    python -m benchmarks.serving.decoder --size small --work work/serving --out work/serving/decoder.json

Faiss is not in this process. Threads: PINREC_THREADS, or half of the cores as a stage of the stack takes. The network
is that of the trained release; histories are random, which changes no time.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks.chaos.table import Row, save, show
from benchmarks.gpu import VOCABULARY, Network
from benchmarks.serving.cases import Case, case_of, random_case
from benchmarks.serving.gemms import decode_products, gemms, prefill_products
from benchmarks.serving.gpt2_peer import Gpt2Peer, decoder_alone, fed_in_rollout
from benchmarks.serving.timing import Times, interleaved, median, ratio, shown, shown_ratio
from benchmarks.serving.world import ServingWorld, make_world
from pinrec_core.generate.generator import in_precision
from pinrec_core.generate.rollout import conditions_of, decode, new_cache, prefill, rollout_uncached
from pinrec_core.generate.static_rollout import StaticRollout, compiled
from pinrec_core.model.pinrec import PinRec

TOTAL = 96
"""Embeddings an outcome."""
OFFSETS = (1, 2, 4, 8, 16)
HISTORY = 128
"""Events, where nothing else is said."""
FEW_STEPS_BAR, CACHE_BAR, PEER_BAR, PREFILL_BAR, DECODE_BAR = 0.15, 0.25, 0.6, 1.4, 3.0
RECALL_AT, RECALL_CHANGE = 100, 0.005
PRECISIONS = ("float32", "bfloat16")
"""Of a CPU; the second is for one with matrix tiles."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    scale: str
    rounds: int
    long_rounds: int
    """Of what takes a second a round."""
    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    compiled: tuple[int, ...]
    """Batches whose rollout is compiled too: each takes minutes."""
    users: int
    """Whose recall is compared between precisions."""
    large: Network
    """With random weights, which change no time."""


SIZES = {
    "full": Size("100k", 40, 7, (1, 4, 16), (32, 128, 512), (1, 16), 1_000, Network(12, 768, 12, 256)),
    "small": Size("10k", 15, 3, (1, 16), (32, 128), (), 200, Network(8, 512, 8, 128)),
    "smoke": Size("smoke", 2, 1, (1, 2), (16,), (), 20, Network(2, 32, 2, 16)),
}


@click.command()
@click.option("--size", "size_name", default="small", show_default=True, type=click.Choice(list(SIZES)))
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for worlds.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON of the rows.")
def main(size_name: str, work: Path, out: Path) -> None:
    """Measure and print the rows."""
    torch.set_num_threads(stage_threads())
    size = SIZES[size_name]
    world = make_world(work, size.scale)
    rows = [
        show(row)
        for part in (precision, against_floors, against_peer, large_network, few_steps, cache, alternatives)
        for row in part(world, size)
    ]
    save(rows, out, f"python -m benchmarks.serving.decoder --size {size_name}")


def stage_threads() -> int:
    """Threads of a stage, as `services/triton/command.py` sets them."""
    return int(os.environ.get("PINREC_THREADS") or max(1, (os.cpu_count() or 1) // 2))


def precision(world: ServingWorld, size: Size) -> list[Row]:
    """What half precision costs in recall: held-out users, exact search among the same item vectors of float32."""
    from pinrec_core.data.dataset import open_dataset
    from pinrec_core.eval.evaluate import NUM_TARGETS, Corpus, RolloutScorer, held_out, item_vectors, measure_users
    from pinrec_core.eval.served import evaluate_served
    from pinrec_core.train.checkpoint import load_checkpoint

    model, config, fitted = load_checkpoint(world.work / world.scale / "run")
    dataset = open_dataset(world.data, config, fitted=fitted)
    split = dataset.split(config)
    chosen = split.test[: size.users]
    users = held_out(dataset, chosen, NUM_TARGETS)
    corpus = Corpus.of(dataset)
    together, served = {}, {}
    with torch.inference_mode():
        vectors = item_vectors(model.eval(), dataset, corpus)
        for name in PRECISIONS:
            scorer = RolloutScorer(in_precision(model, name), dataset, corpus, NUM_TARGETS)
            scorer.vectors = vectors
            together[name] = measure_users(scorer, dataset, corpus, users, k=RECALL_AT).summary()
            served[name] = evaluate_served(model, dataset, chosen, vectors=vectors, at_once=1)
    found = f"targets found in the top {RECALL_AT}, bfloat16 / float32 decoder, {len(users)} held-out users together"
    given = f"targets served, bfloat16 / float32 decoder, {len(users)} held-out users one by one, all decode steps"
    return [
        _precision_row(found, *(together[name]["target_recall"] for name in PRECISIONS)),
        _precision_row(given, *(served[name]["served_target_recall"] for name in PRECISIONS)),
    ]


def _precision_row(what: str, before: float, after: float) -> Row:
    change = after / before - 1 if before else float("nan")
    return Row(
        f"share of {what}",
        f"within {RECALL_CHANGE:.1%}",
        f"{change:+.2%} ({after:.4f} against {before:.4f})",
        abs(change) <= RECALL_CHANGE,
        {"before": before, "after": after},
    )


def against_floors(world: ServingWorld, size: Size) -> list[Row]:
    """Prefill and decode steps against their bare matrix products."""
    rows = []
    release = world.release()
    for name in PRECISIONS:
        for batch in size.batches:
            case = case_of(release, batch, min(HISTORY, size.lengths[-1]), name)
            times = interleaved(_floor_subjects(case, getattr(torch, name)), size.rounds)
            rows += _floor_rows(times, batch, name)
    return rows


def _floor_subjects(case: Case, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    model, inputs, branches, plan = case.model, case.inputs, case.branches, case.plan
    batch, num_branches = branches.outcomes.shape
    length = inputs.timestamps_ms.size(1)
    with torch.inference_mode():
        cache, conditions = new_cache(model, inputs, branches, plan), conditions_of(model, inputs, branches, plan)
        first = prefill(model, inputs, conditions, cache)

    @torch.inference_mode()
    def run_prefill() -> None:
        prefill(model, inputs, conditions_of(model, inputs, branches, plan), cache)

    @torch.inference_mode()
    def run_decode() -> None:
        decode(model, first, inputs.lengths, conditions, plan, cache, length + 1)

    config, content_dim = model.config, inputs.content.size(-1)
    return {
        "prefill": run_prefill,
        "prefill GEMMs": gemms(prefill_products(config, batch, length, num_branches, content_dim), dtype),
        "decode": run_decode,
        "decode GEMMs": gemms(decode_products(config, batch, length, num_branches), dtype),
    }


def _floor_rows(times: Times, batch: int, dtype: str) -> list[Row]:
    rows = []
    # The bars are for float32: the products of bfloat16 take so little time that all else weighs more.
    for what, bar, bar_batch in (("prefill", PREFILL_BAR, 16), ("decode", DECODE_BAR, 1)):
        value = ratio(times, what, f"{what} GEMMs")
        has_bar = batch == bar_batch and dtype == "float32"
        rows.append(
            Row(
                f"{what} / bare GEMMs of the same products, batch {batch}, {dtype}",
                f"<= {bar}" if has_bar else "-",
                f"{shown_ratio(value)} ({shown(times[what])} against {shown(times[f'{what} GEMMs'])})",
                value[0] <= bar if has_bar else None,
                {"batch": batch, "dtype": dtype, "what": what, "ratio": value, "times_ms": times},
            )
        )
    return rows


def against_peer(world: ServingWorld, size: Size) -> list[Row]:
    """The whole rollout against Hugging Face's GPT-2 on the tokens that it feeds, like for like and as each comes."""
    rows = []
    for batch in size.batches:
        ours = {name: case_of(world.release(), batch, min(HISTORY, size.lengths[-1]), name) for name in PRECISIONS}
        plain = ours["float32"]
        fed = fed_in_rollout(plain.model, plain.inputs, plain.branches, plain.plan)
        peers = {name: Gpt2Peer(plain.model, getattr(torch, name)) for name in PRECISIONS}
        differences = {name: _difference(plain, peer.run(fed)) for name, peer in peers.items()}
        subjects: dict[str, Callable[[], object]] = {f"ours {name}": case.roll for name, case in ours.items()}
        subjects |= {f"decoder {name}": partial(decoder_alone, case.model, fed) for name, case in ours.items()}
        subjects |= {f"peer {name}": partial(peer.run, fed) for name, peer in peers.items()}
        times = interleaved(subjects, size.rounds)
        for name, theirs, difference in (
            *((name, name, differences[name]) for name in PRECISIONS),
            ("bfloat16", "float32", differences["float32"]),
        ):
            parts = (f"ours {name}", f"decoder {name}", f"peer {theirs}")
            value, alone = (ratio(times, part, parts[2]) for part in parts[:2])
            has_bar = batch in (1, 16)
            rows.append(
                Row(
                    f"whole rollout, {name} / Hugging Face GPT-2 alone on the same tokens, {theirs}, batch {batch}",
                    f"<= {PEER_BAR}" if has_bar else "-",
                    f"{shown_ratio(value)} ({shown(times[f'ours {name}'])} against {shown(times[f'peer {theirs}'])}; "
                    f"our decoder alone {shown_ratio(alone)}; "
                    f"the peer's embeddings differ from our float32 by at most {difference:.1e})",
                    value[0] <= PEER_BAR if has_bar else None,
                    {"batch": batch, "dtype": name, "peer_dtype": theirs, "ratio": value, "alone": alone}
                    | {"difference": difference}
                    | {
                        "times_ms": {
                            part: times[part] for part in (f"ours {name}", f"decoder {name}", f"peer {theirs}")
                        }
                    },
                )
            )
    return rows


@torch.inference_mode()
def _difference(case: Case, theirs: list[Tensor]) -> float:
    """Largest difference of the peer's embeddings from those of our float32 `case`: it computed what we compute."""
    model, plan = case.model, case.plan
    conditions = conditions_of(model, case.inputs, case.branches, plan)
    batch, num_branches = case.branches.outcomes.shape
    blocks = []
    for step, hidden in enumerate(theirs):
        last = (
            hidden.expand(-1, num_branches, -1)
            if step == 0
            else hidden.view(batch, num_branches, plan.num_fed, -1)[:, :, -1]
        )
        blocks.append(model.output_head.given(last[:, :, None].float(), conditions.emitted))
    return float((torch.cat(blocks, dim=2) - case.roll()).abs().max())


def large_network(_: ServingWorld, size: Size) -> list[Row]:
    """A network of the paper's scale: each precision and the peer, a request alone."""
    network, length = size.large, min(2 * HISTORY, size.lengths[-1])
    plain, half = (_random(network, length, name) for name in PRECISIONS)
    fed = fed_in_rollout(plain.model, plain.inputs, plain.branches, plain.plan)
    peer = Gpt2Peer(plain.model, torch.float32)
    subjects: dict[str, Callable[[], object]] = dict(zip(PRECISIONS, (plain.roll, half.roll), strict=True))
    times = interleaved({**subjects, "peer": partial(peer.run, fed)}, size.long_rounds, warm_up=1)
    ratios = {name: ratio(times, name, "peer") for name in PRECISIONS}
    told = ", ".join(f"{name} {shown_ratio(value)} ({shown(times[name])})" for name, value in ratios.items())
    what = f"{network.layers} x {network.width}, T = {length}, batch 1: whole rollout / Hugging Face GPT-2 in float32"
    return [Row(what, "-", f"{told}, against {shown(times['peer'])}", None, {"ratios": ratios, "times_ms": times})]


def _random(network: Network, length: int, precision: str) -> Case:
    torch.manual_seed(0)
    model = PinRec(network.config(length), VOCABULARY, network.dim, with_id_table=False).eval()
    return random_case(in_precision(model, precision), VOCABULARY, network.dim, 1, length)


def few_steps(world: ServingWorld, size: Size) -> list[Row]:
    """Figure 5's latency: the same number of embeddings in fewer, wider steps."""
    release, length = world.release(), min(HISTORY, size.lengths[-1])
    plans = {
        offsets: case_of(release, 1, length, num_steps=TOTAL // offsets, offsets_per_step=offsets)
        for offsets in OFFSETS
    }
    subjects = {str(offsets): case.roll for offsets, case in plans.items()}
    times = interleaved(subjects, size.rounds)
    value = ratio(times, "16", "1")
    told = ", ".join(f"{TOTAL // offsets} x {offsets}: {shown(times[str(offsets)])}" for offsets in OFFSETS)
    return [
        Row(
            f"{TOTAL} embeddings an outcome, batch 1, T = {length}: 6 x 16 / 96 x 1",
            f"<= {FEW_STEPS_BAR}",
            f"{shown_ratio(value)} ({told})",
            value[0] <= FEW_STEPS_BAR,
            {"ratio": value, "times_ms": times},
        )
    ]


def cache(world: ServingWorld, size: Size) -> list[Row]:
    """With a KV cache and without, by length of the history."""
    rows = []
    for length in size.lengths:
        case = case_of(world.release(), 1, length)

        @torch.inference_mode()
        def uncached(case: Case = case) -> None:
            rollout_uncached(case.model, case.inputs, case.branches, case.plan)

        subjects = {"cached": case.roll, "uncached": uncached}
        times = interleaved(subjects, size.long_rounds, warm_up=1)
        value = ratio(times, "cached", "uncached")
        has_bar = length == 512
        rows.append(
            Row(
                f"rollout with a KV cache / without, T = {length}, {TOTAL} embeddings an outcome, batch 1",
                f"<= {CACHE_BAR}" if has_bar else "-",
                f"{shown_ratio(value)} ({shown(times['cached'])} against {shown(times['uncached'])})",
                value[0] <= CACHE_BAR if has_bar else None,
                {"length": length, "ratio": value, "times_ms": times},
            )
        )
    return rows


def alternatives(world: ServingWorld, size: Size) -> list[Row]:
    """Other ways to run the same rollout, against the plain one in float32."""
    rows, release = [], world.release()
    for batch in size.batches:
        length = min(HISTORY, size.lengths[-1])
        cases = {name: case_of(release, batch, length, name) for name in PRECISIONS}
        subjects: dict[str, Callable[[], object]] = {f"eager {name}": case.roll for name, case in cases.items()}
        if batch in size.compiled:
            subjects["compiled float32"] = _compiled(cases["float32"])  # packed weights are opaque to the compiler
        times = interleaved(subjects, size.rounds)
        for name in times:
            value = ratio(times, name, "eager float32")
            figures = {"batch": batch, "name": name, "ratio": value, "times_ms": times[name]}
            rows.append(Row(f"rollout, {name} / eager float32, batch {batch}", "-",
                            f"{shown_ratio(value)} ({median(times[name]):.2f} ms)", None, figures))  # fmt: skip
    return rows


def _compiled(case: Case) -> Callable[[], object]:
    batch, num_branches = case.branches.outcomes.shape
    static = StaticRollout(
        case.model, case.plan, num_branches, case.inputs.content.size(-1), compiled,
        [batch], [case.inputs.timestamps_ms.size(1)],
    )  # fmt: skip
    static.warm_up()
    return lambda: static(case.inputs, case.branches)


if __name__ == "__main__":
    main()
