"""Patterns against PyTorch's dense attention over a range of lengths."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minference_ext.ops import plan_stats, sparse_attention
from minference_ext.pattern_text import pattern_text
from minference_ext.patterns import HeadPattern

from .inputs import Shape, prompt_like
from .timing import Timings, compare

SDPA = "SDPA"  # the baseline: PyTorch's scaled_dot_product_attention, causal
DENSE = (SDPA, "dense")


@dataclass(frozen=True)
class Row:
    """One method at one length."""

    length: int  #: tokens
    method: str  #: SDPA, or a pattern
    seconds: list[float]  #: of each round, estimation included
    speedup: float  #: over SDPA, median of the rounds' ratios
    attended_share: float = 1.0  #: pairs that enter a softmax / pairs of the causal matrix
    computed_share: float = 1.0  #: pairs multiplied, likewise
    dense_heads: int | None = None  #: computed densely, by pattern or cost model; None: SDPA
    median_seconds: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "median_seconds", statistics.median(self.seconds))


def measure(
    lengths: Sequence[int],
    patterns: Sequence[HeadPattern],
    shape: Shape,
    dtype: torch.dtype,
    *,
    rounds: int,
    seed: int = 0,
) -> Iterator[list[Row]]:
    """Rows of each length in turn: SDPA first, then every pattern in all heads."""
    for length in lengths:
        q, k, v = prompt_like(shape, length, dtype, seed)
        contenders: dict[str, Callable[[], object]] = {SDPA: partial(_sdpa, q, k, v)}
        for pattern in patterns:
            heads = [pattern] * shape.num_heads_q
            contenders[pattern_text(pattern)] = partial(sparse_attention, q, k, v, heads)
        times = compare(contenders, rounds=rounds, seconds_per_run=0.02)
        yield [
            Row(length, SDPA, times.seconds[SDPA], 1.0),
            *(_row(length, pattern, times, q, k) for pattern in patterns),
        ]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _row(length: int, pattern: HeadPattern, times: Timings, q: Tensor, k: Tensor) -> Row:
    name = pattern_text(pattern)
    stats = plan_stats(q, k, [pattern] * q.shape[1])
    causal = int(stats.causal_pairs.sum())
    return Row(
        length,
        name,
        times.seconds[name],
        times.ratio(SDPA, name),
        attended_share=int(stats.attended_pairs.sum()) / causal,
        computed_share=int(stats.computed_pairs.sum()) / causal,
        dense_heads=int(stats.is_dense.sum()),
    )
