"""The training loop: seeded, resumable to the bit, stopped early by validation (paper, section 4.3, Eq. 3-5).

A step's random numbers (users, offsets, negatives, dropout) follow from (seed, step) alone, so a run that was
interrupted and resumed ends, on a CPU, with the very weights of one that was not. Started by `torchrun`, every process
takes a share of each batch (`distributed.py`); the first of them measures and writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pinrec_core.config import Config, TrainConfig
from pinrec_core.data.batches import BatchStream, TrainingBatch
from pinrec_core.data.dataset import Dataset
from pinrec_core.errors import InvalidConfig
from pinrec_core.model.pinrec import PinRec
from pinrec_core.train import checkpoint
from pinrec_core.train.count_min import CountMinSketch
from pinrec_core.train.distributed import ALONE, Ranks, join
from pinrec_core.train.loss import candidate_log_q, sampled_softmax_loss

_FINAL_RATE = 0.05
"""Where the cosine ends, as a share of the learning rate."""

_SHOW_EVERY = 10
"""Steps between looks at the loss, which wait for the device."""

_MAY_CHANGE_ON_RESUME = frozenset({"max_steps", "max_minutes"})

Evaluate = Callable[[PinRec], Mapping[str, float]]
"""Measures a model on held-out users; `unordered_recall` is what early stopping looks at."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    steps: int
    best_step: int
    """Step of the weights in model.safetensors."""
    metrics: Mapping[str, float]
    """Their validation."""
    seconds: float
    """Wall time of all sessions together."""
    stopped_by: str
    """max_steps, max_minutes or patience."""


@dataclass
class Progress:
    """How far a run has come; plain values, saved with every checkpoint."""

    step: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_recall: float = -math.inf
    validations: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, float]:
        """The best validation so far, empty before the first."""
        return next((v for v in self.validations if v["step"] == self.best_step), {})

    @property
    def worse_in_a_row(self) -> int:
        """Validations since the best one."""
        return sum(v["step"] > self.best_step for v in self.validations)

    def add(self, metrics: Mapping[str, float], loss: float) -> bool:
        """Note a validation; whether it is the best so far, of equal ones the newest (nobody to validate: the last)."""
        self.validations.append({"step": self.step, "loss": loss, **metrics})
        if metrics["unordered_recall"] < self.best_recall:
            return False
        self.best_step, self.best_recall = self.step, metrics["unordered_recall"]
        return True


class Trainer:
    """Model, optimizer and sketch of one run; `step` is one update, on this rank's share of the batch."""

    def __init__(
        self, config: Config, dataset: Dataset, stream: BatchStream, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        """Raises InvalidConfig if there are more ranks than users in a batch."""
        if ranks.shard.size > config.train.batch_size:
            raise InvalidConfig(
                f"train.batch_size has value {config.train.batch_size}; allowed: at least {ranks.shard.size}, one user "
                "for each process"
            )
        self.config = config.train
        self.ranks = ranks
        self.window_pick = config.targets.window_pick
        self.device = device
        self.stream = stream
        torch.manual_seed(self.config.seed)
        self.model = PinRec(config, dataset.vocabulary, dataset.items.content.shape[1]).to(device)
        self.optimizer = _optimizer(self.model, self.config)
        self.sketch = CountMinSketch(self.config.sketch_width, self.config.sketch_depth, self.config.seed)
        self.sketch.add(stream.target_ids())

    def step(self, step: int) -> Tensor:
        """One update on the batch of `step` (from 0): its loss over all ranks, scalar."""
        torch.manual_seed(_step_seed(self.config.seed, step, self.ranks.shard.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        batch = self.stream.batch(step, self.ranks.shard).to(self.device)
        self.model.train()
        with self._fast_products():
            loss = self.loss(batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
        self.ranks.sum_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        return self.ranks.sum(loss.detach())

    def loss(self, batch: TrainingBatch) -> Tensor:
        """Loss of the rank's rows (Eq. 3 and 5) / rows of all ranks: scalar; alone, the mean over the batch's rows."""
        with self._mixed_precision():
            hidden = self.model.hidden_states(batch.inputs).flatten(0, 1)  # [B (T+1), width]
            predicted = self.model.predict(
                hidden[batch.position], batch.outcome, batch.target_offset, batch.surface
            )  # [R, D]
            own_ids = batch.candidate_ids[slice(*batch.own_candidates)]
            own = self.model.item_vectors(own_ids, batch.candidate_content, torch.zeros_like(own_ids))  # pins, [c, D]
        candidates = self.ranks.gather_rows(own.float(), len(batch.candidate_ids))  # [C, D]
        losses = sampled_softmax_loss(
            predicted.float(),
            candidates,
            batch.targets,
            batch.mask,
            self._log_q(batch),
            batch.negative,
            self.model.logit_scale(),
            self.window_pick,
            batch.group,
        )
        return losses.sum() / max(1, batch.num_rows)

    def _log_q(self, batch: TrainingBatch) -> Tensor:
        """logQ correction of each candidate: float32 [C]."""
        if not self.config.log_q:
            return torch.zeros(len(batch.candidate_ids), device=self.device)
        frequency = self.sketch.frequency(batch.candidate_ids.cpu().numpy())
        return torch.from_numpy(candidate_log_q(frequency, batch.num_draws, self.stream.random_share)).to(self.device)

    def _fast_products(self) -> AbstractContextManager[None]:
        """On a CPU the same choice rounds the factors of float32 products to bfloat16; sums stay float32.

        That is fast where the processor has instructions for it (AMX), and does nothing where it has none.
        """
        fast = self.config.precision == "bfloat16" and self.device.type == "cpu"
        return product_precision("medium") if fast else nullcontext()

    def _mixed_precision(self) -> AbstractContextManager[Any]:
        """bfloat16 where it is configured and there is a GPU; weights, loss and optimizer stay float32."""
        if self.config.precision == "bfloat16" and self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()


def train(
    config: Config,
    dataset: Dataset,
    run_dir: Path,
    evaluate: Evaluate,
    progress: bool = True,
    resume: bool = False,
    device: str | None = None,
) -> TrainResult:
    """Train on the training users of `dataset`; best weights, newest checkpoint and metrics land in `run_dir`.

    `evaluate` is called every `train.eval_every` steps and at the end; `progress` shows a bar; `resume` goes on from
    `run_dir`'s newest checkpoint; `device` None = a GPU if there is one. Seeds torch's global generator.
    Raises InvalidConfig (resuming with another configuration; a loss that is not finite), InvalidData (no users).
    """
    run_dir = Path(run_dir)
    stream = BatchStream(dataset, dataset.split(config).train, config)
    ranks = join(device)
    trainer = Trainer(config, dataset, stream, ranks.device, ranks)
    state = Progress()
    if resume:
        _check_same(config, checkpoint.load_run_config(run_dir))
        state = Progress(**checkpoint.load_last(run_dir, trainer.model, trainer.optimizer))
    ranks.agree(lambda: None)  # all have read the newest checkpoint before the first one writes
    if ranks.is_first:
        checkpoint.save_run(run_dir, config, dataset.fitted, _facts(dataset))
    stopped_by = _run(trainer, state, run_dir, evaluate, progress and ranks.is_first)
    return TrainResult(state.step, state.best_step, state.best, state.seconds, stopped_by)


def _run(trainer: Trainer, state: Progress, run_dir: Path, evaluate: Evaluate, progress: bool) -> str:
    """Step, validate, save, until something says stop; what it was."""
    config, ranks = trainer.config, trainer.ranks
    started, losses = time.monotonic() - state.seconds, _RunningLoss()
    stopped_by = _stop_reason(config, state, state.seconds)
    with _bar(config, state, progress) as bar:
        while not stopped_by:
            loss = trainer.step(state.step)
            losses.add(loss)
            state.step += 1
            bar.update(config.batch_size)
            if state.step % _SHOW_EVERY == 0:
                _show(bar, state, float(loss))
            due = state.step % config.eval_every == 0 or state.step >= config.max_steps
            if due or config.max_minutes:
                state.seconds = ranks.agree(lambda: time.monotonic() - started)  # clocks of ranks differ
            if due or (config.max_minutes and state.seconds >= 60 * config.max_minutes):
                _validate(trainer, state, run_dir, evaluate, losses.pop(state.step, config))
                state.seconds = ranks.agree(lambda: time.monotonic() - started)
                stopped_by = _stop_reason(config, state, state.seconds)
    return stopped_by


def _validate(trainer: Trainer, state: Progress, run_dir: Path, evaluate: Evaluate, loss: float) -> None:
    """Measure, keep the weights if they are the best, and checkpoint: on the first rank, what is found on all."""
    is_best = state.add(trainer.ranks.agree(lambda: dict(evaluate(trainer.model))), loss)
    if not trainer.ranks.is_first:
        return
    if is_best:
        checkpoint.save_weights(run_dir, trainer.model)
    checkpoint.save_last(run_dir, trainer.model, trainer.optimizer, asdict(state))
    checkpoint.write_json(run_dir / checkpoint.METRICS, {"validation": state.best, "validations": state.validations})


def _stop_reason(config: TrainConfig, state: Progress, seconds: float) -> str:
    """Why to stop now, empty = go on."""
    if state.step >= config.max_steps:
        return "max_steps"
    if config.max_minutes and seconds >= 60 * config.max_minutes:
        return "max_minutes"
    if config.patience and state.worse_in_a_row >= config.patience:
        return "patience"
    return ""


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a step's dropout: another one on each rank, whose rows differ."""
    entropy = [seed, step, rank] if rank else [seed, step]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over `warmup_steps`, then a cosine down to a twentieth at `max_steps`; `step` counts from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate * (_FINAL_RATE + (1.0 - _FINAL_RATE) * cosine)


def _optimizer(model: PinRec, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices of linear layers only, not on embeddings, norms and biases."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in linear]
    others = [p for p in model.parameters() if id(p) not in linear]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)


@contextmanager
def product_precision(wanted: str) -> Iterator[None]:
    """Of float32 matrix products in this process, as long as it lasts."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _RunningLoss:
    """Mean loss since the last validation, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._losses.append(loss)

    def pop(self, step: int, config: TrainConfig) -> float:
        mean = float(torch.stack(self._losses).mean())
        self._losses.clear()
        if not math.isfinite(mean):
            raise InvalidConfig(
                f"train.learning_rate has value {config.learning_rate!r}, and by step {step} the loss is {mean}; "
                "allowed: one small enough to keep it finite"
            )
        return mean


def _bar(config: TrainConfig, state: Progress, progress: bool) -> Any:
    """A bar in examples (users): it shows examples/s and the time left by itself."""
    return tqdm(
        total=config.max_steps * config.batch_size,
        initial=state.step * config.batch_size,
        unit=" examples",
        disable=not progress,
        desc="train",
        mininterval=0.5,
        dynamic_ncols=True,
    )


def _show(bar: Any, state: Progress, loss: float) -> None:
    recall = f"{state.validations[-1]['unordered_recall']:.3f}" if state.validations else "-"
    bar.set_postfix(loss=f"{loss:.3f}", recall=recall, refresh=False)


def _check_same(config: Config, saved: Config) -> None:
    """Raises InvalidConfig naming the first key in which a resumed run would differ."""
    now, then = config.to_dict(), saved.to_dict()
    for section in ("data", "model", "targets", "train", "generate"):  # generate: room for what is fed back
        for key, value in then[section].items():
            may_change = section == "train" and key in _MAY_CHANGE_ON_RESUME
            # JSON holds tuples as lists and reads them back as tuples, so plain comparison is exact.
            if now[section][key] != value and not may_change:
                raise InvalidConfig(f"{section}.{key} has value {now[section][key]!r}; allowed on resume: {value!r}")


def _facts(dataset: Dataset) -> dict[str, Any]:
    """What `dataset.json` of a run says."""
    return {
        "name": dataset.name,
        "content_dim": int(dataset.items.content.shape[1]),
        "watermark_ms": dataset.watermark_ms,
        "num_users": dataset.histories.num_users,
        "num_events": len(dataset.histories.item_ids),
        "num_items": len(dataset.items.ids),
    }
