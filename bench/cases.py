"""Inputs of the benchmarks: tensors, and lines as prompts have them."""

from __future__ import annotations

import torch
from minference_ext.benchmark.inputs import Shape
from torch import Tensor


def tensors(shape: Shape, length: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """q, k, v of [1, heads, length, head_dim], independent normal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(heads: int) -> Tensor:
        size = (1, heads, length, shape.head_dim)
        return torch.randn(size, generator=generator, dtype=torch.float32).to(dtype)

    return normal(shape.num_heads_q), normal(shape.num_heads_kv), normal(shape.num_heads_kv)


def clustered_lines(num_heads: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """(vertical_idx, slash_idx) of [1, num_heads, count], as an estimation finds them.

    Verticals: the first 30 columns and single ones anywhere. Slashes: a local band and bands of 24
    neighbouring offsets anywhere. Sizes do not depend on the length; at 32K they cover 10 % of the
    causal pairs.
    """
    num_verticals, local_band, num_bands, band = 700, 768, 12, 24
    generator = torch.Generator().manual_seed(seed)

    def scattered(count: int, first: int, last: int) -> Tensor:
        return first + torch.randperm(last - first, generator=generator)[:count]

    verticals, slashes = [], []
    for _ in range(num_heads):
        single = scattered(num_verticals - 30, 30, length)
        verticals.append(torch.cat([torch.arange(30), single]).sort().values)
        starts = scattered(num_bands, local_band // band, length // band)[:, None] * band
        bands = (starts + torch.arange(band)).flatten()
        slashes.append(torch.cat([torch.arange(local_band), bands]).sort().values)
    return torch.stack(verticals).int()[None], torch.stack(slashes).int()[None]
