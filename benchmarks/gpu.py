"""The generate stage on a GPU: recorded graphs against eager, no cache and Hugging Face; floors; embeddings a step.

    python -m benchmarks.gpu --report docs/figures

Weights and histories are random, which changes no time. Half precision. Without a GPU it says so and ends with code 0;
`--smoke` runs tiny networks through the same code on a CPU, without graphs.
"""

from __future__ import annotations

# ruff: noqa: E402  the libraries read the thread policy when they load
from services.common.threads import sleep_when_idle

sleep_when_idle()

import datetime
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.chaos.table import Row, save, show
from benchmarks.serving.cases import Case, random_case
from benchmarks.serving.gemms import decode_products, gemms, prefill_products
from benchmarks.serving.gpt2_peer import Gpt2Peer, fed_in_rollout
from benchmarks.serving.timing import Times, interleaved, median, ratio, shown, shown_ratio
from pinrec_core.config import Config, GenerateConfig, ModelConfig, TargetConfig
from pinrec_core.generate.rollout import rollout_uncached
from pinrec_core.generate.static_rollout import GraphRecorder, StaticRollout, eager
from pinrec_core.model.pinrec import PinRec
from pinrec_core.schema import Vocabulary

VOCABULARY = Vocabulary(("save", "click"), ("save", "click", "search"), ("home", "search"), ("search",))
TOTAL = 96
"""Embeddings an outcome."""
PEER_BAR, DECODE_BAR, FEW_STEPS_BAR, THROUGHPUT_BAR = 0.3, 2.5, 0.15, 5.0
_COPY_BYTES = 1 << 30


@dataclass(frozen=True)
class Network:
    """Sizes of a decoder."""

    layers: int
    width: int
    heads: int
    dim: int

    def config(self, length: int, offsets: int = 16, total: int = TOTAL) -> Config:
        """mt_oc with `total` embeddings an outcome, `offsets` a step."""
        return Config(
            model=ModelConfig(
                variant="mt_oc", num_layers=self.layers, num_heads=self.heads, hidden_dim=self.width,
                embedding_dim=self.dim, id_dim=self.dim, hash_rows=1, max_history=length, head_layers=3,
                embedder_layers=3,
            ),
            targets=TargetConfig(max_offset=16, window_size=16),
            generate=GenerateConfig(num_steps=total // offsets, offsets_per_step=offsets, feed="first"),
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    networks: tuple[Network, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    offsets: tuple[int, ...]
    rounds: int
    slow_rounds: int


FULL = Plan(
    (Network(12, 768, 12, 256), Network(8, 1024, 16, 256)), (256, 2_048), (1, 8, 16, 32), (1, 2, 4, 8, 16), 30, 3
)
SMOKE = Plan((Network(2, 32, 2, 16),), (16,), (1, 2), (8, 16), 2, 1)


@click.command()
@click.option("--report", type=click.Path(path_type=Path), help="Folder for gpu.json.")
@click.option("--smoke", is_flag=True, help="Tiny networks on a CPU: shows that everything runs.")
@click.option("--compile/--no-compile", "compile_first", default=True, show_default=True, help="Before recording.")
def main(report: Path | None, smoke: bool, compile_first: bool) -> None:
    """Measure and print the rows."""
    if not smoke and not torch.cuda.is_available():
        click.echo("skipped: no GPU here")
        return
    device = "cpu" if smoke else "cuda"
    plan = SMOKE if smoke else FULL
    bench = Bench(device, plan, compile_first)
    rows = [show(row) for row in bench.rows()]
    if report is not None:
        save(rows, report / "gpu.json", "make bench-gpu")


class Bench:
    """All rows of a plan on a device."""

    def __init__(self, device: str, plan: Plan, compile_first: bool) -> None:
        self.device, self.plan, self.compile_first = device, plan, compile_first
        self.dtype = torch.float16 if device == "cuda" else torch.float32

    def rows(self) -> Iterator[Row]:
        """Row by row, as they are known."""
        yield self.machine()
        for network in self.plan.networks:
            for length in self.plan.lengths:
                rates: dict[int, float] = {}
                for batch in self.plan.batches:
                    case = self.case(network.config(length), batch, length)
                    times = self.times(case)
                    rates[batch] = batch / median(times["graph"])
                    yield from self.judged(f"{network.layers} x {network.width}, T = {length}", batch, case, times)
                yield self.throughput(f"{network.layers} x {network.width}, T = {length}", rates)
            yield self.few_steps(network)

    def machine(self) -> Row:
        """What it ran on, and when."""
        name = torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        facts: dict[str, Any] = {"device": name, "date": today, "torch": torch.__version__, "dtype": str(self.dtype)}
        facts["copy_gb_s"] = 2 * _COPY_BYTES / 1e9 / (self.copy_ms() / 1000)
        return Row("measured on", "stated", f"{name}, {today}, copies {facts['copy_gb_s']:,.0f} GB/s", None, facts)

    def copy_ms(self) -> float:
        """Median time to copy 1 GiB on the device."""
        source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=self.device)
        into = torch.empty_like(source)
        return median(interleaved({"copy": self.ended(lambda: into.copy_(source))}, 5)["copy"])

    def case(self, config: Config, batch: int, length: int) -> Case:
        """Random weights and histories."""
        torch.manual_seed(0)
        model = PinRec(config, VOCABULARY, config.model.embedding_dim, with_id_table=False)
        model = model.eval().to(self.device, self.dtype)
        return random_case(model, VOCABULARY, config.model.embedding_dim, batch, length)

    def graph_of(self, case: Case) -> StaticRollout:
        """The rollout as it serves on a GPU, with one bucket."""
        batch, num_branches = case.branches.outcomes.shape
        make = GraphRecorder(self.compile_first) if self.device == "cuda" else eager
        length, content_dim = case.inputs.content.shape[1:]
        static = StaticRollout(case.model, case.plan, num_branches, content_dim, make, [batch], [length])
        static.warm_up()
        return static

    def ended(self, run: Callable[[], object]) -> Callable[[], None]:
        """`run`, and the device is done."""

        def timed() -> None:
            run()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return timed

    def times(self, case: Case) -> Times:
        """Every way to roll out, and the floors."""
        static = self.graph_of(case)
        peer, fed = (
            Gpt2Peer(case.model, case.model.start_token.dtype),
            fed_in_rollout(case.model, case.inputs, case.branches, case.plan),
        )
        batch, num_branches = case.branches.outcomes.shape
        length, content_dim = case.inputs.content.shape[1:]
        config = case.model.config
        prefilled = prefill_products(config, batch, length, num_branches, content_dim)
        decoded = decode_products(config, batch, length, num_branches)
        subjects: Mapping[str, Callable[[], object]] = {
            "graph": lambda: static(case.inputs, case.branches),
            "graph, decode steps": lambda: static.decode(batch),
            "eager": case.roll,
            "Hugging Face": lambda: peer.run(fed),
            "prefill GEMMs": gemms(prefilled, self.dtype, self.device),
            "decode GEMMs": gemms(decoded, self.dtype, self.device),
        }
        times = interleaved({name: self.ended(run) for name, run in subjects.items()}, self.plan.rounds)
        one = random_case(case.model, VOCABULARY, content_dim, 1, length)
        if batch == 1:
            uncached = torch.inference_mode()(lambda: rollout_uncached(one.model, one.inputs, one.branches, one.plan))
            times |= interleaved({"no cache": self.ended(uncached)}, self.plan.slow_rounds, warm_up=1)
        difference = (static(case.inputs, case.branches).float() - case.roll().float()).abs().max()
        times["difference"] = [float(difference)]
        return times

    def judged(self, what: str, batch: int, case: Case, times: Times) -> Iterator[Row]:
        """Ratios of one case."""
        difference = times.pop("difference")[0]
        figures = {"batch": batch, "what": what, "times_ms": times, "difference": difference}
        peer = ratio(times, "graph", "Hugging Face")
        yield Row(
            f"{what}, batch {batch}: graphs / Hugging Face GPT-2", f"<= {PEER_BAR}",
            f"{shown_ratio(peer)} ({shown(times['graph'])} against {shown(times['Hugging Face'])}; eager "
            f"{shown(times['eager'])}; graph and eager differ by at most {difference:.1e})",
            peer[0] <= PEER_BAR, figures,
        )  # fmt: skip
        if "no cache" in times:
            slower = median(times["no cache"]) / median(times["graph"])
            yield Row(f"{what}, batch {batch}: no cache / graphs", "-", f"{slower:.1f} times as long", None, {})
        steps = case.plan.num_steps - 1
        weights = sum(p.numel() * p.element_size() for p in case.model.decoder.parameters())
        # A copy reads and writes: what is only read takes half of it.
        floor_ms = steps * weights / _COPY_BYTES * self.copy_ms() / 2
        to_floor = median(times["graph, decode steps"]) / floor_ms
        has_bar = batch == 1
        yield Row(
            f"{what}, batch {batch}: decode steps / reading the weights once a step",
            f"<= {DECODE_BAR}" if has_bar else "-",
            f"{to_floor:.2f} ({shown(times['graph, decode steps'])} against {floor_ms:.2f} ms; bare GEMMs "
            f"{shown(times['decode GEMMs'])})",
            to_floor <= DECODE_BAR if has_bar else None,
            {"floor_ms": floor_ms, "steps": steps},
        )

    def throughput(self, what: str, rates: dict[int, float]) -> Row:
        """Requests a second in the largest batch against one at a time."""
        first, last = min(rates), max(rates)
        gain = rates[last] / rates[first]
        told = f"{gain:.1f} ({1000 * rates[last]:,.0f}/s against {1000 * rates[first]:,.0f}/s)"
        has_bar = last == 32
        return Row(f"{what}: requests a second in batches of {last} / one at a time",
                   f">= {THROUGHPUT_BAR}" if has_bar else "-", told, gain >= THROUGHPUT_BAR if has_bar else None,
                   {"rates_per_ms": rates})  # fmt: skip

    def few_steps(self, network: Network) -> Row:
        """The same number of embeddings in fewer, wider steps."""
        length = self.plan.lengths[0]
        cases = {o: self.case(network.config(length, o), 1, length) for o in self.plan.offsets}
        statics = {o: self.graph_of(case) for o, case in cases.items()}

        def run(offsets: int) -> Tensor:
            return statics[offsets](cases[offsets].inputs, cases[offsets].branches)

        times = interleaved({str(o): self.ended(lambda o=o: run(o)) for o in cases}, self.plan.rounds)
        few, many = str(max(cases)), str(min(cases))
        value = ratio(times, few, many)
        told = ", ".join(f"{TOTAL // int(o)} x {o}: {shown(each)}" for o, each in times.items())
        has_bar = (few, many) == ("16", "1")
        return Row(
            f"{network.layers} x {network.width}, T = {length}, batch 1: 6 x 16 / 96 x 1",
            f"<= {FEW_STEPS_BAR}" if has_bar else "-", f"{shown_ratio(value)} ({told})",
            value[0] <= FEW_STEPS_BAR if has_bar else None, {"times_ms": times},
        )  # fmt: skip


if __name__ == "__main__":
    main()
