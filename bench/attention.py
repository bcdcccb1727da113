"""Attention against torch's scaled_dot_product_attention (SDPA)."""

from __future__ import annotations

from functools import partial

import minference_ext
import torch
from minference_ext import HeadPattern, PlanStats
from minference_ext.benchmark.inputs import Shape
from minference_ext.benchmark.timing import Timings, compare
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .cases import clustered_lines, tensors

Row = dict[str, object]

GQA = Shape(num_heads_q=8, num_heads_kv=2)
# vertical_size, slash_size whose lines attend 10 % of the causal pairs at 32K also with random q
# and k, where estimated columns lie anywhere: near the (3500, 100) of many published heads.
ESTIMATED = (2900, 100)
SIZES = (700, 1056)  # those of cases.clustered_lines


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def gigaflops(shape: Shape, length: int, seconds: float) -> float:
    """Achieved on the causal half of the matrix, 4 * head_dim operations per pair."""
    return 2 * length**2 * shape.head_dim * shape.num_heads_q / seconds / 1e9


def spread(times: Timings, name: str) -> str:
    """Milliseconds from the 10th to the 90th percentile."""
    low, high = times.spread(name)
    return f"{low * 1e3:.1f}-{high * 1e3:.1f}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dense(rounds: int) -> list[Row]:
    """dense causal attention, 8 heads, head_dim 128, 8K; bf16 wants >= 1.8, float32 >= 1.0"""
    rows: list[Row] = []
    shape, length = Shape(), 8192
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        q, k, v = tensors(shape, length, dtype, seed=1)
        times = compare(
            {
                "sdpa": partial(sdpa, q, k, v),
                "ours": partial(minference_ext.dense_attention, q, k, v),
            },
            rounds=rounds,
        )
        rows.append(
            {
                "dtype": name_of(dtype),
                "kernel": minference_ext.cpu_kernel_for(name_of(dtype)),
                "SDPA GFLOP/s": round(gigaflops(shape, length, times.median("sdpa"))),
                "ours GFLOP/s": round(gigaflops(shape, length, times.median("ours"))),
                "SDPA ms p10-p90": spread(times, "sdpa"),
                "ours ms p10-p90": spread(times, "ours"),
                "SDPA / ours": round(times.ratio("sdpa", "ours"), 2),
            }
        )
    return rows


def short(rounds: int) -> list[Row]:
    """prompts from 128 tokens, 8 query / 2 kv heads: SDPA's time over ours; wants >= 0.95"""
    rows: list[Row] = []
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for length in (128, 130, 192, 256, 384, 512, 1000, 2048, 4096):
            q, k, v = tensors(GQA, length, dtype, seed=2)
            times = compare(
                {
                    "sdpa": partial(sdpa, q, k, v),
                    "dense": partial(minference_ext.dense_attention, q, k, v),
                    "vs": partial(minference_ext.vs_attention, q, k, v, 1000, 6096),
                    "vs small": partial(minference_ext.vs_attention, q, k, v, 30, 800),
                },
                rounds=3 * rounds,
                seconds_per_run=0.02,
            )
            row: Row = {"dtype": name_of(dtype), "length": length}
            row["SDPA ms"] = round(times.median("sdpa") * 1e3, 3)
            for name, label in (
                ("dense", "dense"),
                ("vs", "vs(1000, 6096)"),
                ("vs small", "vs(30, 800)"),
            ):
                row[f"SDPA / {label}"] = round(times.ratio("sdpa", name), 2)
            rows.append(row)
    return rows


def density(stats: PlanStats) -> tuple[str, str]:
    """Shares of the causal pairs that are attended and computed."""
    causal = stats.causal_pairs.sum()
    return (
        f"{float(stats.attended_pairs.sum() / causal):.1%}",
        f"{float(stats.computed_pairs.sum() / causal):.1%}",
    )


def sparse(rounds: int) -> list[Row]:
    """vertical_slash, 32K, 8 query / 2 kv heads, bf16: given lines want >= 12, estimated >= 10"""
    length = 32768
    q, k, v = tensors(GQA, length, torch.bfloat16, seed=3)
    vertical_idx, slash_idx = clustered_lines(GQA.num_heads_q, length, seed=4)
    times = compare(
        {
            "sdpa": partial(sdpa, q, k, v),
            "dense": partial(minference_ext.dense_attention, q, k, v),
            "given": partial(
                minference_ext.vs_attention_with_index, q, k, v, vertical_idx, slash_idx
            ),
            "estimated": partial(minference_ext.vs_attention, q, k, v, *ESTIMATED),
            "estimation": partial(minference_ext.estimate_vs_index, q, k, *ESTIMATED),
        },
        rounds=rounds,
    )
    heads = GQA.num_heads_q
    given = minference_ext.plan_stats(
        q,
        k,
        [HeadPattern.vertical_slash_index()] * heads,
        vertical_idx=vertical_idx,
        slash_idx=slash_idx,
    )
    estimated = minference_ext.plan_stats(q, k, [HeadPattern.vertical_slash(*ESTIMATED)] * heads)
    densities = {"given": density(given), "estimated": density(estimated)}
    rows: list[Row] = []
    for name, (attended, computed) in densities.items():
        row: Row = {
            "lines": name if name == "given" else f"{name} {ESTIMATED}",
            "attended": attended,
            "computed": computed,
            "SDPA ms": round(times.median("sdpa") * 1e3),
            "our dense ms": round(times.median("dense") * 1e3),
            "ms": round(times.median(name) * 1e3, 1),
            "ms p10-p90": spread(times, name),
            "SDPA / ours": round(times.ratio("sdpa", name), 1),
        }
        if name == "estimated":
            row["estimation share"] = f"{1 / times.ratio(name, 'estimation'):.1%}"
        rows.append(row)
    return rows


def scaling(rounds: int) -> list[Row]:
    """the same line sizes at 32K and 128K, lists and estimation; wants <= 4.6 times the time"""
    contenders = {}
    for length in (32768, 131072):
        q, k, v = tensors(GQA, length, torch.bfloat16, seed=5)
        lines = clustered_lines(GQA.num_heads_q, length, seed=6)

        def run(
            q: Tensor = q, k: Tensor = k, v: Tensor = v, lines: tuple[Tensor, Tensor] = lines
        ) -> None:
            minference_ext.estimate_vs_index(q, k, *SIZES)
            minference_ext.vs_attention_with_index(q, k, v, *lines)

        contenders[f"{length}"] = run
    times = compare(contenders, rounds=rounds)
    return [
        {
            "32K ms": round(times.median("32768") * 1e3, 1),
            "128K ms": round(times.median("131072") * 1e3, 1),
            "128K / 32K": round(times.ratio("131072", "32768"), 2),
        }
    ]
