"""bfloat16 products on a CPU: the packed layer against the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pinrec_core.model.packed_linear import FEW_ROWS, PackedLinear, can_pack

pytestmark = pytest.mark.skipif(not can_pack(), reason="this CPU has no bfloat16 products")


def linear_of(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    linear = nn.Linear(len(weight[0]), len(weight))
    linear.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return linear


@pytest.mark.parametrize("times", [1, FEW_ROWS])
def test_values_worked_by_hand(times):
    """Few rows, and more than few."""
    packed = PackedLinear(linear_of([[1.0, 2.0], [3.0, -4.0], [0.5, 0.0]], [0.0, 1.0, -1.0]))
    out = packed(torch.tensor([[[1.0, 1.0]], [[2.0, 0.5]]] * times))
    assert out.dtype == torch.float32
    assert out.tolist() == [[[3.0, 0.0, -0.5]], [[3.0, 5.0, 0.0]]] * times


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, 33])
@pytest.mark.parametrize("gelu", [False, True])
def test_it_is_the_plain_layer_up_to_half_precision(rows, gelu):
    torch.manual_seed(0)
    linear, x = nn.Linear(96, 48), torch.randn(rows, 96)
    wanted = F.gelu(linear(x), approximate="tanh") if gelu else linear(x)
    for halved, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        found = PackedLinear(linear, gelu, halved)(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, atol=0.02, rtol=0.02)
