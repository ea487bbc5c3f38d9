"""Linear layers and the prefill's attention in half precision, for a CPU with matrix tiles (AMX); the rest in float32.

A layer keeps three copies of its weights and takes what is fastest for the rows that it is given:

- up to `FEW_ROWS`, the decode steps of a request alone: rows of INT8 weights. The weights' bytes are what takes time.
- up to `FEW_PRODUCTS`, small layers: float32 as it is. Tiles hold 16 rows, and a call of theirs takes 40 us at least.
- else bfloat16 in tiles, laid out once as oneDNN's kernels read them: given as they are, weights are laid out anew in
  each call, which takes longer than the product itself.

LayerNorms, residual sums and the cache stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec_core.model.decoder import Block
from pinrec_core.model.pinrec import PinRec

FEW_ROWS = 4
FEW_PRODUCTS = 4 * 256 * 1024
TILE_ROWS, MOST_ROWS = 16, 512
"""Of a call. What the products of so many rows take and give stays in a core's cache."""


class PackedLinear(nn.Module):
    """`nn.Linear`, then GELU (by tanh) if `gelu`: float32 or bfloat16 [..., in] -> [..., out]; for inference.

    The result is float32; with `halved` it stays in bfloat16 where it comes from tiles.
    """

    def __init__(self, linear: nn.Module, gelu: bool = False, halved: bool = False) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self.halved = halved
        self.plain = linear
        self.few_rows = FEW_ROWS if linear.in_features % TILE_ROWS == 0 else 0  # the kernel reads 16 numbers at a time
        self.bias = linear.bias.detach().bfloat16()
        weight = linear.weight.detach()
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)  # [out]
        self.scale = scale.bfloat16()
        self.int8 = (weight / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        # Opaque tensors of oneDNN's: they are neither moved nor saved.
        self.tiles = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self.are_few(x):
            return self.of_few(x)
        y = in_chunks(self.of_tiles, x)
        return (y if self.halved else y.float()).view(*x.shape[:-1], self.plain.out_features)

    def are_few(self, x: Tensor) -> bool:
        """Whether tiles do not pay for [..., in]."""
        return self.are_rows(x) or x.numel() * self.plain.out_features <= FEW_PRODUCTS

    def are_rows(self, x: Tensor) -> bool:
        """Whether [..., in] is multiplied fastest by INT8 weights."""
        return x.numel() <= self.few_rows * x.size(-1)

    def of_few(self, x: Tensor) -> Tensor:
        """By rows of INT8 weights or as the plain layer: [..., in] -> float32 [..., out]."""
        if self.are_rows(x):
            rows = x.reshape(-1, x.size(-1)).bfloat16().contiguous()
            products = torch._weight_int8pack_mm(rows, self.int8, self.scale)
            y = (products + self.plain.bias).view(*x.shape[:-1], self.plain.out_features)
        else:
            y = F.linear(x.float(), self.plain.weight, self.plain.bias)
        return F.gelu(y, approximate="tanh") if self.activation[0] == "gelu" else y

    def of_tiles(self, x: Tensor) -> Tensor:
        """Bfloat16 [R, in] -> [R, out], R of few sizes: see `tile_rows`."""
        return torch.ops.mkldnn._linear_pointwise(x, self.tiles, self.bias, *self.activation)  # type: ignore[no-any-return]


class PackedMlp(nn.Module):
    """Two layers with GELU between them: float32 [..., width] -> [..., width]; what is between stays in tiles."""

    def __init__(self, widen: nn.Module, narrow: nn.Module) -> None:
        super().__init__()
        self.widen, self.narrow = PackedLinear(widen, gelu=True), PackedLinear(narrow)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        if self.widen.are_few(x):
            return self.narrow.of_few(self.widen.of_few(x))
        y = in_chunks(lambda rows: self.narrow.of_tiles(self.widen.of_tiles(rows)), x)
        return y.float().view(x.shape)


def in_chunks(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of bfloat16 rows, applied to `MOST_ROWS` at a time: [..., in] -> bfloat16 [rows, out].

    oneDNN makes a program for each number of rows that it meets, which takes longer than it runs and stays in memory;
    histories of every length in batches of every size would never stop asking for new ones. So calls have few sizes.
    """
    rows = x.reshape(-1, x.size(-1)).bfloat16()
    chunks = [product(padded(chunk)) for chunk in rows.split(MOST_ROWS)]
    return (chunks[0] if len(chunks) == 1 else torch.cat(chunks))[: len(rows)]


def padded(rows: Tensor) -> Tensor:
    """[n, in] with zeros below it up to `tile_rows` of them; itself where none are missing."""
    missing = tile_rows(len(rows)) - len(rows)
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows


def tile_rows(rows: int) -> int:
    """The next of few sizes up to `MOST_ROWS`: multiples of a tile, farther apart the larger they are."""
    step = max(TILE_ROWS, (1 << rows.bit_length()) // 16)
    return -(-rows // step) * step


def can_pack() -> bool:
    """Whether this CPU and this torch have bfloat16 products at all."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def has_tiles() -> bool:
    """Whether they are several times as fast as float32's: the CPU has AMX."""
    return can_pack() and bool(torch.cpu._is_amx_tile_supported())


def pack(model: PinRec) -> PinRec:
    """Pack every linear layer, in place. The model can no longer be trained or saved."""
    for block in model.decoder.blocks:
        if isinstance(block, Block):
            widen, _, narrow = block.mlp
            block.add_module("mlp", PackedMlp(widen, narrow))
            block.attention.add_module("qkv", PackedLinear(block.attention.qkv, halved=True))
    _pack_rest(model)
    return model


def _pack_rest(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        elif not isinstance(child, PackedLinear | PackedMlp):
            _pack_rest(child)
