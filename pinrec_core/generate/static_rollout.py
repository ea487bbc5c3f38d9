"""The rollout as programs of fixed shapes, made before the first request: CUDA graphs on a GPU (paper, section 4.4.3).

A program works on buffers of its own and takes no arguments, so that it can be recorded once and replayed: one for the
prefill of each (batch, length) bucket, one for all decode steps of each batch bucket. A request batch is copied into
the buffers of the smallest bucket that holds it; rows and slots beyond it are padding that nothing reads. Every
bucket's K and V lie in one cache, of the largest bucket's size.

The same programs run without a graph on a CPU; `rollout` is their plain twin.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import FunctionType

import torch
from torch import Tensor

from pinrec_core.config import GenerateConfig
from pinrec_core.generate.rollout import Branches, Conditions, conditions_of, decode, prefill
from pinrec_core.model.inputs import SequenceInputs
from pinrec_core.model.kv_cache import KVCache
from pinrec_core.model.pinrec import PinRec

Program = Callable[[], Tensor]
"""Reads buffers, returns a tensor that its next call overwrites."""

MakeProgram = Callable[[Program], Program]
"""What a function becomes before it serves: itself, compiled, recorded as a graph."""

programs_made: Counter[str] = Counter()
"""Of this process, made "opening" a release or "serving" a request; the latter means that a bucket was forgotten."""

BATCHES = (1, 2, 4, 8, 16, 32)
SHORTEST = 64
"""Events of the smallest length bucket."""
_RUNS_BEFORE_CAPTURE = 3


def lengths_up_to(longest: int, shortest: int = SHORTEST) -> tuple[int, ...]:
    """Length buckets in events: powers of two from `shortest`, and the longest history."""
    buckets = []
    length = shortest
    while length < longest:
        buckets.append(length)
        length *= 2
    return (*buckets, longest)


def bucket_of(buckets: Sequence[int], wanted: int) -> int:
    """The smallest of ascending `buckets` that holds `wanted`; the caller has checked that one does."""
    return next(bucket for bucket in buckets if bucket >= wanted)


@dataclass(frozen=True)
class _Buffers:
    """What the programs read and write, of the largest bucket's size; a bucket uses the first rows."""

    inputs: SequenceInputs
    branches: Branches
    cache: KVCache
    first: Tensor
    """[B, A, O, D]: the prefill's embeddings"""

    def rows(self, batch: int, length: int | None = None) -> tuple[SequenceInputs, Branches, KVCache, Tensor]:
        """Views of the first `batch` rows, and of the first `length` events of each."""
        inputs = {
            field.name: None if value is None else value[:batch] if value.ndim == 1 else value[:batch, :length]
            for field in fields(SequenceInputs)
            for value in (getattr(self.inputs, field.name),)
        }
        branches = Branches(*(getattr(self.branches, field.name)[:batch] for field in fields(Branches)))
        return SequenceInputs(**inputs), branches, self.cache.rows(batch), self.first[:batch]  # type: ignore[arg-type]


class StaticRollout:
    """Rolls out batches of up to the largest bucket's size. Every program is made by `warm_up`; none after it.

    Not safe to call from two threads: programs share their buffers. `num_branches` is A of every program; a batch that
    asks for fewer gets branches that nobody reads.
    """

    def __init__(
        self,
        model: PinRec,
        plan: GenerateConfig,
        num_branches: int,
        content_dim: int,
        make_program: MakeProgram,
        batches: Sequence[int] = BATCHES,
        lengths: Sequence[int] = (),
    ) -> None:
        self._model, self._plan, self._num_branches = model, plan, num_branches
        self._make_program = make_program
        self._batches = sorted(batches)
        self._lengths = sorted(lengths) or lengths_up_to(model.config.model.max_history)
        self._buffers = self._new_buffers(content_dim)
        self._prefills: dict[tuple[int, int], Program] = {}
        self._decodes: dict[int, Program] = {}
        self._is_warm = False

    @property
    def num_programs(self) -> int:
        """Programs made so far."""
        return len(self._prefills) + len(self._decodes)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Make the program of every bucket, the largest first: what smaller ones need of memory is there then."""
        for batch in reversed(self._batches):
            for length in reversed(self._lengths):
                self._prefill_program(batch, length)()
            if self._plan.num_steps > 1:
                self._decode_program(batch)()
        self._is_warm = True

    @torch.inference_mode()
    def __call__(self, inputs: SequenceInputs, branches: Branches) -> Tensor:
        """As `rollout`: [B, A, M, D]. Histories and batch fit the largest bucket."""
        size, asked = branches.outcomes.shape
        longest = inputs.timestamps_ms.size(1)
        batch, length = bucket_of(self._batches, size), bucket_of(self._lengths, longest)
        self._fill(inputs, branches, batch, length)
        blocks = [self._prefill_program(batch, length)()]  # [B, A, O, D]
        if self._plan.num_steps > 1:
            blocks.append(self._decode_program(batch)())  # [B, A, (steps - 1) O, D]
        return torch.cat(blocks, dim=2)[:size, :asked]

    @torch.inference_mode()
    def decode(self, batch: int) -> Tensor:
        """The decode steps alone, over what the last call left in the buffers: for measuring."""
        return self._decode_program(bucket_of(self._batches, batch))()

    def _fill(self, inputs: SequenceInputs, branches: Branches, batch: int, length: int) -> None:
        """Copy a batch into the buffers. Rows beyond it are empty histories; what lies beyond a history is masked, and
        zero: an earlier batch may have left what is no number.
        """
        into, into_branches, _, _ = self._buffers.rows(batch, length)
        size, longest = inputs.timestamps_ms.shape
        for field in fields(SequenceInputs):
            given, buffer = getattr(inputs, field.name), getattr(into, field.name)
            if given is None or buffer is None:
                continue
            (buffer[:size] if given.ndim == 1 else buffer[:size, :longest]).copy_(given)
            if given.ndim > 1:
                buffer[:size, longest:].zero_()
        into.lengths[size:] = 0
        for field in fields(Branches):
            given, buffer = getattr(branches, field.name), getattr(into_branches, field.name)
            (buffer[:size] if given.ndim == 1 else buffer[:size, : given.size(1)]).copy_(given)

    def _prefill_program(self, batch: int, length: int) -> Program:
        if (batch, length) not in self._prefills:
            inputs, branches, cache, first = self._buffers.rows(batch, length)

            def run() -> Tensor:
                cache.zero(length + 1)  # the decode program attends, masked, to what longer histories left there
                return first.copy_(prefill(self._model, inputs, self._conditions(inputs, branches), cache))

            self._prefills[batch, length] = self._made(run)
        return self._prefills[batch, length]

    def _decode_program(self, batch: int) -> Program:
        if batch not in self._decodes:
            inputs, branches, cache, first = self._buffers.rows(batch)
            prefix = self._lengths[-1] + 1  # whatever was prefilled: what a row has beyond its length is masked

            def run() -> Tensor:
                conditions = self._conditions(inputs, branches)
                return torch.cat(
                    decode(self._model, first, inputs.lengths, conditions, self._plan, cache, prefix), dim=2
                )

            self._decodes[batch] = self._made(run)
        return self._decodes[batch]

    def _made(self, run: Program) -> Program:
        programs_made["serving" if self._is_warm else "opening"] += 1
        return self._make_program(run)

    def _conditions(self, inputs: SequenceInputs, branches: Branches) -> Conditions:
        return conditions_of(self._model, inputs, branches, self._plan)

    def _new_buffers(self, content_dim: int) -> _Buffers:
        like, plan = self._model.start_token, self._plan
        batch, length, num_branches = self._batches[-1], self._lengths[-1], self._num_branches
        model = self._model.config.model

        def codes(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=like.device)

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=like.dtype, device=like.device)

        inputs = SequenceInputs(
            content=floats(batch, length, content_dim),
            item_types=codes(batch, length),
            actions=codes(batch, length),
            surfaces=codes(batch, length),
            timestamps_ms=codes(batch, length),
            lengths=codes(batch),
            id_emb=floats(batch, length, model.id_dim),
        )
        branches = Branches(codes(batch, num_branches), codes(batch, num_branches), codes(batch), codes(batch))
        slots = length + 1 + (plan.num_steps - 1) * num_branches * plan.num_fed
        return _Buffers(
            inputs,
            branches,
            self._model.decoder.new_cache(batch, slots, like).zero(),
            floats(batch, num_branches, plan.offsets_per_step, model.embedding_dim),
        )


def eager(program: Program) -> Program:
    """The program as it is."""
    return program


def compiled(program: Program, backend: str = "inductor") -> Program:
    """Compiled for exactly its shapes; a graph break is an error."""
    return torch.compile(with_own_code(program), fullgraph=True, dynamic=False, backend=backend)


def with_own_code(program: Program) -> Program:
    """The same function on a copy of its code.

    Dynamo counts compilations by code object and gives up after eight: all buckets' programs share one otherwise.
    """
    assert isinstance(program, FunctionType)
    return FunctionType(
        program.__code__.replace(), program.__globals__, program.__name__, program.__defaults__, program.__closure__
    )


class GraphRecorder:
    """Records programs as CUDA graphs that share one memory pool. For one thread."""

    def __init__(self, compile_first: bool = True) -> None:
        self._compile_first = compile_first
        self._pool = torch.cuda.graph_pool_handle()
        self.num_captures = 0

    def __call__(self, program: Program) -> Program:
        """Run a program a few times, as a capture wants it, then record it; the result replays."""
        fn = compiled(program) if self._compile_first else program
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                fn()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = fn()
        self.num_captures += 1

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
