"""Data-parallel training over the processes that `torchrun` starts: the gradients of one process on the joint batch.

Each rank embeds its own part of the batch's candidates; `gather_rows` gives every rank all of them, and carries
gradients back, so that in-batch and random negatives are those of the joint batch. Nothing else is shared: batches,
count-min sketch and first weights follow from the seed on every rank. Gloo on CPUs, NCCL on GPUs. A process that
torchrun did not start is alone, and pays for nothing here.
Letters: C candidates of the joint batch, D embedding.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from pinrec_core.data.batches import WHOLE, Shard

_PATIENCE = timedelta(hours=2)
"""Longest wait for another rank: the first one measures the validation users while the others wait. A rank that died
ends the run at once, by torchrun."""


def is_first_rank() -> bool:
    """Whether this process is the one that talks and writes; true without torchrun. Known before the ranks have met."""
    return int(os.environ.get("RANK", "0")) == 0


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    shard: Shard
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank measures, writes and shows."""
        return self.shard.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there are no other ranks."""
        return self.shard.size == 1

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """Rows of all ranks, in rank order, from the rows `Shard.bounds(total)` of each: [c, D] -> [total, D].

        The gradient of a row is the sum of what all ranks' losses say of it.
        """
        if self.alone:
            return own
        run = -(-total // self.shard.size)
        padded = torch.cat([own, own.new_zeros(run - len(own), *own.shape[1:])])
        gathered: Tensor = _GatherRows.apply(padded, self.shard)  # type: ignore[no-untyped-call]
        return gathered[:total]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each parameter's gradient by its sum over ranks; None stays where no rank has one."""
        if self.alone:
            return
        held = [p for p in parameters if p.requires_grad]
        has_one = torch.tensor([p.grad is not None for p in held], device=held[0].device, dtype=torch.float32)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in held]
        flat = torch.cat([has_one, *(part.reshape(-1) for part in parts)])
        distributed.all_reduce(flat)
        has_one, *sums = flat.split([len(held), *(p.numel() for p in held)])
        for parameter, summed, ranks in zip(held, sums, has_one.tolist(), strict=True):
            parameter.grad = summed.view_as(parameter) if ranks else None

    def sum(self, value: Tensor) -> Tensor:
        """A tensor's sum over ranks, on each of them."""
        if not self.alone:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def agree(self, say: Callable[[], Any]) -> Any:
        """What the first rank's `say()` returns (JSON values), on every rank; the others wait and do not call it."""
        if self.alone:
            return say()
        content = json.dumps(say()).encode() if self.is_first else b""
        size = torch.tensor([len(content)], device=self.device)
        distributed.broadcast(size, src=0)
        words = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.is_first:
            words.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        distributed.broadcast(words, src=0)
        return json.loads(bytes(words.cpu().tolist()))


ALONE = Ranks(WHOLE, torch.device("cpu"))


def join(device: str | None = None) -> Ranks:
    """This process among the ranks that torchrun started, met on the first call; alone without torchrun.

    `device`: None = this rank's GPU if there is one, else the CPU. The ranks part when the process ends: a second
    meeting would find the addresses of the first.
    """
    if device is None:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    own = torch.device(device)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(WHOLE, own)
    if not distributed.is_initialized():
        if own.type == "cuda":
            torch.cuda.set_device(own)
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
        atexit.register(distributed.destroy_process_group)
    return Ranks(Shard(distributed.get_rank(), size), own)


class _GatherRows(torch.autograd.Function):
    """Rows of equal number on all ranks -> all of them; backward, each row gets the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, shard: Shard) -> Tensor:  # type: ignore[override]
        ctx.shard = shard
        parts = [torch.empty_like(own) for _ in range(shard.size)]
        distributed.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        summed = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(summed)  # gloo has no reduce-scatter
        return summed.chunk(ctx.shard.size)[ctx.shard.rank], None
