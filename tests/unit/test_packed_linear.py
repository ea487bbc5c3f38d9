"""bfloat16 products on a CPU: the packed layer against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pinrec_core.model.packed_linear import (
    FEW_PRODUCTS,
    FEW_ROWS,
    MOST_ROWS,
    PackedLinear,
    PackedMlp,
    can_pack,
    in_chunks,
    tile_rows,
)

pytestmark = pytest.mark.skipif(not can_pack(), reason="this CPU has no bfloat16 products")

WIDE = FEW_PRODUCTS // (FEW_ROWS + 1) // 64
"""Columns that make tiles of `FEW_ROWS` + 1 rows of 64."""


def linear_of(weight: list[list[float]], bias: list[float], inner: int = 2) -> nn.Linear:
    """A layer whose weights are followed by zeros up to `inner`."""
    linear = nn.Linear(inner, len(weight))
    rows = [row + [0.0] * (inner - len(row)) for row in weight]
    linear.load_state_dict({"weight": torch.tensor(rows), "bias": torch.tensor(bias)})
    return linear


@pytest.mark.parametrize("inner", [2, 16])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_PRODUCTS // (3 * 2) + 2])
def test_values_worked_by_hand(rows, inner):
    """By rows of INT8, as the plain layer, in tiles; 127, -127 and 64 are what INT8 has of 2, -2 and about 1."""
    packed = PackedLinear(linear_of([[1.0, 2.0], [2.0, -2.0], [0.5, 0.0]], [0.0, 1.0, -1.0], inner))
    x = torch.zeros(rows, inner)
    x[:, :2] = torch.tensor([1.0, 1.0])
    x[0, :2] = torch.tensor([2.0, 0.5])
    out = packed(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], torch.tensor([3.0, 4.0, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(out[1:], torch.tensor([[3.0, 1.0, -0.5]]).expand(rows - 1, 3), atol=0.02, rtol=0)


def test_no_rows_give_no_rows():
    """An empty history."""
    assert PackedLinear(nn.Linear(16, 8))(torch.zeros(1, 0, 16)).shape == (1, 0, 8)


def test_int8_rows_are_scaled_one_by_one():
    packed = PackedLinear(linear_of([[127.0, -1.0], [0.0, 0.0], [0.254, 0.002]], [0.0, 7.0, 0.0], 16))
    assert packed.int8[:, :2].tolist() == [[127, -1], [0, 0], [127, 1]]
    assert packed(torch.ones(1, 16))[0, :2].tolist() == [126.0, 7.0]


@pytest.mark.parametrize("inner", [24, 32, 64])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 33, 257])
@pytest.mark.parametrize("gelu", [False, True])
def test_it_is_the_plain_layer_up_to_half_precision(rows, gelu, inner):
    torch.manual_seed(0)
    linear, x = nn.Linear(inner, WIDE), torch.randn(rows, inner)
    wanted = F.gelu(linear(x), approximate="tanh") if gelu else linear(x)
    for halved in (False, True):
        packed = PackedLinear(linear, gelu, halved)
        found = packed(x)
        assert found.dtype == (torch.bfloat16 if halved and not packed.are_few(x) else torch.float32)
        torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.02)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 400])
def test_two_layers_in_tiles_are_the_plain_two(rows):
    torch.manual_seed(0)
    widen, narrow = nn.Linear(64, 256), nn.Linear(256, 64)
    x = torch.randn(2, rows, 64)
    wanted = narrow(F.gelu(widen(x), approximate="tanh"))
    torch.testing.assert_close(PackedMlp(widen, narrow)(x), wanted, atol=0.03, rtol=0.02)


def test_calls_come_in_few_sizes():
    sizes = [tile_rows(rows) for rows in range(1, MOST_ROWS + 1)]
    assert [tile_rows(rows) for rows in (1, 16, 17, 129, 257, 300, 512)] == [16, 16, 32, 144, 288, 320, 512]
    assert all(rows <= size < rows + max(16, rows / 8) for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 24


@pytest.mark.parametrize("rows", [1, 16, 18, MOST_ROWS, MOST_ROWS + 1, 2 * MOST_ROWS + 30])
def test_rows_in_chunks_are_the_rows(rows):
    calls = []

    def double(part):
        assert part.dtype == torch.bfloat16
        calls.append(len(part))
        return 2 * part

    x = torch.arange(rows * 4, dtype=torch.float32).view(rows, 2, 2)[:, :1]  # not contiguous
    assert torch.equal(in_chunks(double, x), 2 * x.reshape(rows, 2).bfloat16())
    assert calls == [MOST_ROWS] * (rows // MOST_ROWS) + ([tile_rows(rows % MOST_ROWS)] if rows % MOST_ROWS else [])


def test_rows_that_are_not_contiguous():
    packed, x = PackedLinear(nn.Linear(16, 8)), torch.randn(16, 3).T
    assert torch.equal(packed(x), packed(x.contiguous()))
    assert torch.equal(packed(x.bfloat16()), packed(x.contiguous().bfloat16()))
