"""Memory of plan and estimation, which do not depend on what the machine does meanwhile."""

from __future__ import annotations

import time

import minference_ext
import torch
from minference_ext import HeadPattern

Row = dict[str, object]


def million_tokens(_rounds: int) -> list[Row]:
    """1M tokens, 32 query / 8 kv heads, (1000, 6096): wants a plan <= 8 MiB, estimation <= 10 B"""
    length, heads, heads_kv, head_dim = 1 << 20, 32, 8, 128
    generator = torch.Generator().manual_seed(7)
    # The estimation reads the last 64 queries alone; the others are views of one row.
    row = torch.randn(1, heads, 1, head_dim, generator=generator).bfloat16()
    q = row.expand(1, heads, length, head_dim)
    k = torch.randn(1, heads_kv, length, head_dim, generator=generator).bfloat16()
    start = time.perf_counter()
    stats = minference_ext.plan_stats(
        q, k, [HeadPattern.vertical_slash(1000, 6096)] * heads, dense_fallback=False
    )
    seconds = time.perf_counter() - start
    upstream = heads * (length // 64) * (1000 + 6096) * 4
    return [
        {
            "plan MiB": round(int(stats.plan_bytes.sum()) / 2**20, 2),
            "upstream's index MiB": round(upstream / 2**20),
            "estimation bytes per head and token": round(
                int(stats.estimation_bytes.max()) / length, 2
            ),
            "attended": f"{float(stats.attended_pairs.sum() / stats.causal_pairs.sum()):.2%}",
            "seconds": round(seconds, 1),
        }
    ]
