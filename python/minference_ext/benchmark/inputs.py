"""Queries and keys whose attention has the columns and diagonals of real prompts.

Random tensors have neither: an estimation finds lines anywhere, and they cover nearly everything.
Real heads have a mean query and a mean key, and RoPE turns both by their positions, so a score
depends on the distance of the pair above all. That gives diagonals, in bands. Here

    k_j = R(w j) (m + noise),  q_i = R(w i) (gain sum_s R(-w s) m + noise),  s: 0 and two far ones

with RoPE's frequencies w, so that scores peak at the distances s and fall off as a power of the
distance to them. One component, which RoPE does not turn, marks the keys that all queries read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ROPE_THETA = 5e5
# Nats. A score loses a thirteenth of it (1 / ln ROPE_THETA) with each factor e of distance from a
# diagonal, so mass falls as d^-1.5.
_PEAK_SCORE = 19.0
_NOISE = 0.2  # of a token, relative to the mean
# Keys that all queries read, and their scores: nats above what lifts a key at a typical distance as
# high as a diagonal. The sinks are the first keys, which lie farther away.
_COLUMNS, _COLUMN_SCORE = 200, -5.0
_SINKS, _SINK_SCORE = 4, 6.0
_FAR_DIAGONALS, _NEAREST = 2, 64


@dataclass(frozen=True)
class Shape:
    """Heads of one layer: 8 query heads of a Llama-3-8B group split, head_dim 128."""

    num_heads_q: int = 8
    num_heads_kv: int = 8
    head_dim: int = 128


def prompt_like(
    shape: Shape, length: int, dtype: torch.dtype, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v of [1, heads, length, head_dim]; v is independent normal.

    shape.head_dim: even, at least 4.
    """
    generator = torch.Generator().manual_seed(seed)
    num_pairs = shape.head_dim // 2
    gain = _PEAK_SCORE / num_pairs
    frequency = ROPE_THETA ** -(torch.arange(num_pairs, dtype=torch.float64) / num_pairs)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)  # [length, num_pairs]
    # What a key's score loses on its way from a diagonal to a typical distance.
    contrast = gain * float((1 - torch.cos(frequency * (length / 4))).sum())
    # So that the default softmax scale leaves scores as they are written above.
    unit = shape.head_dim**0.25

    def tokens(mean: Tensor, noise: float, marks: Tensor) -> Tensor:
        """[length, head_dim]; the last pair holds `marks` in place of a turned component."""
        random = torch.randn(length, num_pairs, dtype=torch.complex64, generator=generator)
        pairs = (mean + noise * random) * turn
        pairs[:, -1] = marks
        return torch.cat([pairs.real, pairs.imag], dim=-1).mul(unit).to(dtype)

    means, keys, queries = [], [], []
    for _ in range(shape.num_heads_kv):
        phase = 2 * math.pi * torch.rand(num_pairs, generator=generator)
        means.append(torch.polar(torch.ones(num_pairs), phase))
        marks = torch.zeros(length, dtype=torch.complex64)
        columns = torch.randperm(length, generator=generator)[:_COLUMNS]
        marks[columns] = torch.tensor(1 + _COLUMN_SCORE * 1j)
        marks[:_SINKS] = torch.tensor(1 + _SINK_SCORE * 1j)
        keys.append(tokens(means[-1], _NOISE, marks))
    for head in range(shape.num_heads_q):
        span = max(0, length // 2 - _NEAREST)
        far = _NEAREST + (span * torch.rand(_FAR_DIAGONALS, generator=generator)).long()
        peaks = torch.cat([torch.zeros(1), far])[:, None] * frequency  # [1 + far, num_pairs]
        back = torch.polar(torch.ones_like(peaks), -peaks).sum(0).to(torch.complex64)
        mean = means[head * shape.num_heads_kv // shape.num_heads_q]
        queries.append(tokens(gain * back * mean, gain * _NOISE, torch.tensor(contrast + 1j)))
    size = (1, shape.num_heads_kv, length, shape.head_dim)
    values = torch.randn(size, generator=generator).to(dtype)
    return torch.stack(queries)[None], torch.stack(keys)[None], values
