"""The floor of the decoder: the matrix products of a prefill or of the decode steps, and nothing else.

Each product has operands of its own, as the layers of a network have, and writes into memory that is there already.
What a network needs beside them (norms, activations, copies, the calls themselves) is what the floor leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pinrec_core.config import Config


@dataclass(frozen=True)
class Product:
    """`count` products [rows, inner] x [inner, columns], each for `batch` pairs of matrices (1 = weights)."""

    rows: int
    inner: int
    columns: int
    batch: int = 1
    count: int = 1

    @property
    def flop(self) -> int:
        """Floating-point operations of all of them."""
        return 2 * self.rows * self.inner * self.columns * self.batch * self.count


def prefill_products(config: Config, batch: int, length: int, branches: int, content_dim: int) -> list[Product]:
    """Of `generate/rollout.py:prefill`: item embedder, tokens, blocks, head. The last block has one token a row."""
    m, tokens = config.model, batch * (length + 1)
    head_dim, width = m.hidden_dim // m.num_heads, m.hidden_dim
    heads = batch * m.num_heads
    embedder_width = max(m.embedding_dim, width)
    events = batch * length
    pin = content_dim * m.use_content + m.id_dim * m.use_ids
    embedders = [Product(events, inner, embedder_width) for inner in (pin, content_dim)] + [
        Product(events, embedder_width, m.embedding_dim, count=2)
    ]
    whole = m.num_layers - 1
    blocks = [
        Product(tokens, width, 3 * width, count=whole),
        Product(length + 1, head_dim, length + 1, heads, whole),
        Product(length + 1, length + 1, head_dim, heads, whole),
        Product(tokens, width, width, count=whole),
        Product(tokens, width, 4 * width, count=whole),
        Product(tokens, 4 * width, width, count=whole),
    ]
    last = [
        Product(tokens, width, 2 * width),
        Product(1, head_dim, length + 1, heads),
        Product(1, length + 1, head_dim, heads),
        Product(batch, width, width, count=2),
        Product(batch, width, 4 * width),
        Product(batch, 4 * width, width),
    ]
    tokens_of_events = [Product(events, m.embedding_dim, width)]
    return [*embedders, *tokens_of_events, *blocks, *last, *head_products(config, batch, branches)]


def head_products(config: Config, batch: int, branches: int) -> list[Product]:
    """Of one step's embeddings, from the hidden state of each branch."""
    m = config.model
    emitted = batch * branches * config.generate.offsets_per_step
    inner = [Product(emitted, m.hidden_dim, m.hidden_dim, count=m.head_layers - 2)] if m.head_layers > 2 else []
    first = [Product(batch * branches, m.hidden_dim, m.hidden_dim)] if m.head_layers > 1 else []
    return [*first, *inner, Product(emitted, m.hidden_dim, m.embedding_dim)]


def decode_products(config: Config, batch: int, length: int, branches: int) -> list[Product]:
    """Of all steps after the prefill."""
    m, plan = config.model, config.generate
    fed = branches * plan.num_fed
    tokens, width, head_dim, heads = batch * fed, m.hidden_dim, m.hidden_dim // m.num_heads, batch * m.num_heads
    steps = plan.num_steps - 1
    products = [
        Product(tokens, m.embedding_dim, width, count=steps),
        Product(tokens, width, 3 * width, count=steps * m.num_layers),
        Product(tokens, width, width, count=steps * m.num_layers),
        Product(tokens, width, 4 * width, count=steps * m.num_layers),
        Product(tokens, 4 * width, width, count=steps * m.num_layers),
    ]
    for step in range(1, plan.num_steps):
        slots = length + 1 + step * fed
        products += [
            Product(fed, head_dim, slots, heads, m.num_layers),
            Product(fed, slots, head_dim, heads, m.num_layers),
        ]
    return products + [each for _ in range(steps) for each in head_products(config, batch, branches)]


def gemms(products: list[Product], dtype: torch.dtype, device: str = "cpu") -> Callable[[], None]:
    """Does all products once a call, weights as `Linear` keeps them: [columns, inner]."""
    calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]] = []

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    for p in products:
        for _ in range(p.count):
            if p.batch == 1:
                calls.append((torch.mm, ones(p.rows, p.inner), ones(p.columns, p.inner).t(), ones(p.rows, p.columns)))
            else:
                left, right = ones(p.batch, p.rows, p.inner), ones(p.batch, p.columns, p.inner).transpose(1, 2)
                calls.append((torch.bmm, left, right, ones(p.batch, p.rows, p.columns)))

    @torch.inference_mode()
    def run() -> None:
        for multiply, left, right, out in calls:
            multiply(left, right, out=out)

    return run
