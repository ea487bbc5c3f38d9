"""The `generate` stage: histories -> kept embeddings and how many items each must fetch (paper, section 4.4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pinrec_core.config import GenerateConfig
from pinrec_core.errors import InvalidConfig
from pinrec_core.generate.compress import allocate_to_embeddings, compress
from pinrec_core.generate.rollout import Branches, rollout
from pinrec_core.generate.static_rollout import GraphRecorder, MakeProgram, StaticRollout, compiled
from pinrec_core.messages import Generated, GenerateInput
from pinrec_core.model.inputs import SequenceInputs, collate
from pinrec_core.model.packed_linear import can_pack, pack
from pinrec_core.model.pinrec import PinRec
from pinrec_core.release import Release
from pinrec_core.schema import Vocabulary

GROUP_TOKENS = 256
"""Tokens of prefill that take as long as the decode steps of a small batch."""

ENGINES = ("auto", "eager", "compiled", "graphs")

RollOut = Callable[[SequenceInputs, Branches], torch.Tensor]
"""[B, A, M, D] of a batch."""


class Generator:
    """Rolls out a batch in one go, then compresses and allocates each request on its own."""

    def __init__(self, model: PinRec, vocabulary: Vocabulary, roll_out: RollOut | None = None) -> None:
        """`model` is on its device, in the precision to compute in. `roll_out`: how; None = plainly, call by call."""
        self._device, self._dtype = model.start_token.device, model.start_token.dtype
        self._plan = model.config.generate
        self._roll_out = roll_out or partial(rollout, model.eval(), plan=self._plan)
        self._action_of_outcome = torch.from_numpy(vocabulary.action_of_outcome.astype(np.int64)).to(self._device)

    @classmethod
    def open(cls, release: Release, device: str = "cpu", engine: str = "auto", precision: str = "auto") -> Generator:
        """Load the decoder of a release, and make every program that it will run.

        engine: `eager` call by call; `graphs` recorded as CUDA graphs; `compiled` for fixed shapes by torch.compile;
        `auto` = graphs on a GPU, eager on a CPU. precision: of weights and activations (section 4.4.1); on a CPU
        `bfloat16` is what `packed_linear` makes of it; `auto` = float16 on a GPU, float32 on a CPU. Raises
        InvalidRelease if the weights are damaged or do not fit their sizes, InvalidConfig for an engine or a precision
        that there is not on this device.
        """
        where = torch.device(device)
        make_program, wanted = program_maker(engine, where), precision_of(precision, where, engine)
        model = in_precision(PinRec.open(release).to(where), wanted)
        if make_program is None:
            return cls(model, release.vocabulary)
        num_outcomes = len(release.vocabulary.outcomes)
        static = StaticRollout(model, model.config.generate, num_outcomes, release.content_dim, make_program)
        static.warm_up()
        return cls(model, release.vocabulary, static)

    def run(self, batch: Sequence[GenerateInput]) -> list[Generated]:
        """One rollout for all requests of like length; an outcome with count 0 gets no branch."""
        answers: dict[int, Generated] = {}
        for rows in length_groups([request.sequence_length for request in batch]):
            together = [batch[row] for row in rows]
            active = [np.flatnonzero(request.counts) for request in together]
            embeddings = self.roll_out(together, active)  # [B, A, M, D]
            for at, row in enumerate(rows):
                answers[row] = select(embeddings[at], active[at], batch[row].counts, self._plan)
        return [answers[row] for row in range(len(batch))]

    @torch.inference_mode()
    def roll_out(self, batch: Sequence[GenerateInput], active: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Embeddings of each request's `active` outcomes: float32 [B, A, M, D], A the most of any request."""
        width = max(1, max(len(outcomes) for outcomes in active))
        # Rows with fewer branches repeat outcome 0; what those branches generate is not read.
        padded = np.stack([np.pad(outcomes, (0, width - len(outcomes))) for outcomes in active])
        outcomes = torch.from_numpy(padded).to(self._device)
        branches = Branches(
            outcomes=outcomes,
            actions=self._action_of_outcome[outcomes],
            surface=torch.tensor([request.surface for request in batch], device=self._device),
            request_time_ms=torch.tensor([request.request_time_ms for request in batch], device=self._device),
        )
        inputs = collate(batch, [request.sequence_length for request in batch]).to(self._device, self._dtype)
        embeddings: NDArray[np.float32] = self._roll_out(inputs, branches).float().cpu().numpy()
        return embeddings


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are rolled out together, longest first: a short history is padded to the longest of its group.

    A group ends where the rows below half of its length would be padded by more than `GROUP_TOKENS` tokens in all, what
    a rollout of their own costs beside its prefill.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    groups: list[list[int]] = []
    while rows:
        longest = lengths[rows[0]]
        shorter = [row for row in rows if 2 * lengths[row] < longest]
        if sum(longest - lengths[row] for row in shorter) <= GROUP_TOKENS:
            shorter = []
        groups.append(rows[: len(rows) - len(shorter)])
        rows = shorter
    return groups


def precision_of(precision: str, device: torch.device, engine: str = "auto") -> str:
    """`auto` decided. A CPU has no fast float16, and not every CPU has bfloat16. Raises InvalidConfig."""
    on_gpu = device.type == "cuda"
    if precision == "auto":
        return "float16" if on_gpu else "float32"
    packs = can_pack() and engine != "compiled"  # packed weights are opaque to the compiler
    half = ["bfloat16", "float16"] if on_gpu else ["bfloat16"] if packs else []
    if precision not in ("float32", *half):
        words, where = ", ".join(("auto", "float32", *half)), f"{device}, compiled" if engine == "compiled" else device
        raise InvalidConfig(f"PINREC_PRECISION has value {precision!r}; allowed on {where}: {words}")
    return precision


def in_precision(model: PinRec, precision: str) -> PinRec:
    """The model, changed in place to compute in a precision of `precision_of`."""
    if precision == "bfloat16" and model.start_token.device.type == "cpu":
        return pack(model)
    return model.to(getattr(torch, precision))


def program_maker(engine: str, device: torch.device) -> MakeProgram | None:
    """What an engine makes of a program; None = no programs. Raises InvalidConfig."""
    on_gpu = device.type == "cuda"
    allowed = ENGINES if on_gpu else tuple(name for name in ENGINES if name != "graphs")
    if engine not in allowed:
        raise InvalidConfig(f"PINREC_DECODER has value {engine!r}; allowed on {device}: {', '.join(allowed)}")
    if engine == "compiled":
        return compiled
    return GraphRecorder() if on_gpu and engine in ("auto", "graphs") else None


def select(
    embeddings: NDArray[np.float32], outcomes: NDArray[np.int64], counts: NDArray[np.int32], plan: GenerateConfig
) -> Generated:
    """Compress within each outcome and divide its count over the kept embeddings by their merge counts.

    embeddings [A, M, D] (row a belongs to `outcomes[a]`), counts [num_outcomes]. An embedding allocated nothing is
    dropped.
    """
    _, per_branch, dim = embeddings.shape
    rows, allocations = [np.empty(0, np.int64)], [np.empty(0, np.int64)]  # rows of embeddings as [A M, D]
    num_kept = 0
    for branch, outcome in enumerate(outcomes):
        kept, merged = compress(embeddings[branch], plan.compression_threshold)
        allocation = allocate_to_embeddings(merged, int(counts[outcome]))
        searched = np.flatnonzero(allocation)
        rows.append(branch * per_branch + kept[searched])
        allocations.append(allocation[searched])
        num_kept += len(kept)
    row = np.concatenate(rows)  # [K], by outcome, in generation order
    branch_of, place = np.divmod(row, per_branch)
    step, offset = np.divmod(place, plan.offsets_per_step)
    return Generated(
        embeddings=embeddings.reshape(-1, dim)[row],
        allocation=np.concatenate(allocations).astype(np.int32),
        outcome=np.asarray(outcomes)[branch_of].astype(np.int32),
        step=step.astype(np.int32),
        target_offset=(offset + 1).astype(np.int32),
        num_generated=len(outcomes) * per_branch,
        num_kept=num_kept,
    )
