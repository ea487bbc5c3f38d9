"""The one small network used by item embedders, the ID embedding and the output head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WithSkip(nn.Module):
    """network(x) + skip(x): at first the sum of x's parts, each as long as the result; the network starts at 0."""

    def __init__(self, network: nn.Sequential, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.network = start_at_zero(network)
        self.skip = start_as_sum(nn.Linear(in_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.network(x) + self.skip(x)  # type: ignore[no-any-return]


def mlp(in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """`num_layers` fully connected layers, ReLU and LayerNorm between them (paper, section 4.1)."""
    layers: list[nn.Module] = []
    width = in_dim
    for _ in range(num_layers - 1):
        layers += [nn.Linear(width, hidden_dim), nn.ReLU(), nn.LayerNorm(hidden_dim)]
        width = hidden_dim
    layers.append(nn.Linear(width, out_dim))
    return nn.Sequential(*layers)


def skipped_mlp(skip: bool, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> nn.Module:
    """`mlp`, with a linear path beside it if `skip` (see `WithSkip`); one layer is a linear path itself."""
    if num_layers == 1:
        linear = nn.Linear(in_dim, out_dim)
        return start_as_sum(linear) if skip else linear
    network = mlp(in_dim, hidden_dim, out_dim, num_layers)
    return WithSkip(network, in_dim, out_dim) if skip else network


@torch.no_grad()
def start_as_sum(linear: nn.Linear) -> nn.Linear:
    """In place: the sum of the input's parts of `out` numbers each (the identity where in = out)."""
    out_dim, in_dim = linear.weight.shape
    parts = -(-in_dim // out_dim)
    linear.weight.copy_(torch.eye(out_dim).repeat(1, parts)[:, :in_dim])
    linear.bias.zero_()
    return linear


@torch.no_grad()
def start_at_zero(network: nn.Sequential) -> nn.Sequential:
    """In place: the last layer, so that all is 0 that comes out."""
    for parameter in network[-1].parameters():
        parameter.zero_()
    return network
