"""Linear layers in bfloat16 on a CPU with matrix tiles (AMX), everything else in float32.

Weights are laid out once as oneDNN's kernels read them: given as they are, they are laid out anew in each call, which
takes longer than the product itself for the rows of a decode step. For very few rows the plain float32 product is
faster still. LayerNorms, attention and the residual sums stay in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec_core.model.decoder import Block
from pinrec_core.model.pinrec import PinRec

FEW_ROWS = 4
"""Up to so many rows are multiplied in float32: tiles hold 16, and a call takes 30 us however few they are."""


class PackedLinear(nn.Module):
    """`nn.Linear`, then GELU (by tanh) if `gelu`: float32 or bfloat16 [..., in] -> [..., out]; for inference.

    Products of bfloat16 numbers, summed in float32. `halved`: the result is bfloat16.
    """

    def __init__(self, linear: nn.Module, gelu: bool = False, halved: bool = False) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        self.activation: tuple[str, list[float], str] = ("gelu", [], "tanh") if gelu else ("none", [], "")
        self.out_dtype = torch.bfloat16 if halved else torch.float32
        self.plain = linear
        self.bias = linear.bias.detach().bfloat16()
        # Opaque tensors of oneDNN's: they are neither moved nor saved.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if x.numel() <= FEW_ROWS * x.size(-1):
            y = self.plain(x.float())
            y = F.gelu(y, approximate="tanh") if self.activation[0] == "gelu" else y
            return y.to(self.out_dtype)  # type: ignore[no-any-return]
        y = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, *self.activation)
        return y.to(self.out_dtype)  # type: ignore[no-any-return]


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
            block.mlp = nn.Sequential(PackedLinear(widen, gelu=True, halved=True), PackedLinear(narrow))
    _pack_rest(model)
    return model


def _pack_rest(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child))
        elif not isinstance(child, PackedLinear):
            _pack_rest(child)
