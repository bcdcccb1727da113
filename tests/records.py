"""Records as the commands write them, made up: for tests of pictures and reports.

Keys are written out here rather than taken from the code that reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MODEL = 'somebody/$model$ <b>&amp;"7B"'  # no markup, no formula
MACHINE = {"cpu": "a processor", "threads": 2, "torch": "2.13"}


def search(num_layers: int = 3, num_heads: int = 4) -> dict[str, Any]:
    """Head h of layer l computes (l + 1) / 10 + h / 100; the last head of all is dense."""
    heads = []
    for layer in range(num_layers):
        for head in range(num_heads):
            is_last = (layer, head) == (num_layers - 1, num_heads - 1)
            chosen = {
                "pattern": "dense" if is_last else f"vertical_slash({30 + head % 3},2048)",
                "error": 0.0 if is_last else 0.125,
                "recall": 1.0 if is_last else 0.9 - layer / 1000 - head / 10000,
                "computed_share": 1.03 if is_last else min(1.0, (layer + 1) / 10 + head / 100),
            }
            other = {"pattern": "a_shape(64,512)", "error": 0.5, "recall": 0.25}
            heads.append(
                {
                    "layer": layer,
                    "head": head,
                    **chosen,
                    "reason": "least error <within> the budget",
                    "candidates": [chosen, {**other, "computed_share": 0.2}],
                }
            )
    return {
        "format": "minference_search",
        "version": 1,
        "model": MODEL,
        "machine": MACHINE,
        "prompts": [{"name": "kv_retrieval, seed 0", "length": 30000}],
        "objective": "output",
        "budget": {"columns": 128, "tokens": 512},
        "num_layers": num_layers,
        "num_heads": num_heads,
        "heads": heads,
    }


def row(**values: Any) -> dict[str, Any]:
    """An answer of an evaluation."""
    return {
        "task": "niah",
        "method": "dense",
        "length": 4096,
        "sample": 0,
        "depth": None,
        "metric": "accuracy",
        "score": 1.0,
        "prediction": "7",
        "answer": "7",
        "seconds": 0.5,
        "computed_share": None,
        **values,
    }


def evaluation(
    methods: Sequence[str] = ("dense", "vertical_slash(30,800)", "a_shape(64,512)"),
    lengths: Sequence[int] = (4096, 8192),
    depths: Sequence[float] = (0.0, 0.5, 1.0),
    samples: int = 2,
) -> dict[str, Any]:
    """niah by depth: dense finds all, others none in the middle but half of the first length's;
    tracking without depths: 1 / number of the method; perplexity: 4 + number of the method."""
    rows = []
    for number, method in enumerate(methods):
        share = None if method == "dense" else 0.25
        for length in lengths:
            common = {"method": method, "length": length, "computed_share": share}
            for sample in range(samples):
                for depth in depths:
                    is_found = number == 0 or depth in (0.0, 1.0)
                    is_found |= sample == 0 and length == lengths[0]
                    prediction = "7" if is_found else "<script>alert(1)</script> $x$"
                    rows.append(
                        row(
                            **common,
                            depth=depth,
                            sample=sample,
                            score=float(is_found),
                            prediction=prediction,
                        )
                    )
            rows.append(row(**common, task="tracking", score=1 / (number + 1)))
            rows.append(
                row(
                    **common,
                    task="pg19",
                    metric="perplexity",
                    score=4.0 + number,
                    prediction="",
                    answer="",
                )
            )
    return {
        "format": "minference_evaluation",
        "version": 1,
        "model": MODEL,
        "machine": MACHINE,
        "rows": rows,
    }


def timing(length: int, method: str, seconds: float, speedup: float) -> dict[str, Any]:
    return {
        "length": length,
        "method": method,
        "seconds": [seconds, seconds * 1.1],
        "median_seconds": seconds,
        "speedup": speedup,
        "peak_bytes": None,
        "breakdown": None,
    }


def prefill(lengths: Sequence[int] = (1024, 4096, 16384), has_parts: bool = True) -> dict[str, Any]:
    """SDPA takes length^2 / 2^24 s; vertical_slash length / 2^11 s: faster from 8192 tokens on."""
    rows = []
    for length in lengths:
        dense, sparse = length**2 / 2**24, length / 2**11
        for method, seconds in (("SDPA", dense), ("vertical_slash(30,800)", sparse)):
            timed = timing(length, method, seconds, dense / seconds)
            timed["peak_bytes"] = length * 2**13
            if has_parts:
                is_sparse = method != "SDPA"
                timed["breakdown"] = {
                    "estimate": seconds / 8 if is_sparse else 0.0,
                    "plan": seconds / 8 if is_sparse else 0.0,
                    "attention": seconds / 2 if is_sparse else seconds * 3 / 4,
                    "rest": seconds / 4,
                }
            rows.append(timed)
    return {
        "format": "minference_prefill",
        "version": 1,
        "model": MODEL,
        "machine": MACHINE,
        "rounds": 2,
        "dtype": "bfloat16",
        "rows": rows,
        "crossovers": {"vertical_slash(30,800)": 8192.0},
    }


def attention() -> dict[str, Any]:
    """As `minference bench attention --json`, which names no format."""
    rows = [
        timing(length, method, seconds * length, 2.0 if method == "dense" else 1.0)
        for length in (1024, 2048)
        for method, seconds in (("SDPA", 2e-6), ("dense", 1e-6), ("a_shape(16,64)", 2e-6))
    ]
    return {
        "machine": MACHINE,
        "shape": {"num_heads_q": 8, "num_heads_kv": 2, "head_dim": 128},
        "dtype": "float32",
        "rounds": 2,
        "rows": rows,
        "crossovers": {"a_shape(16,64)": None},
    }


def observations() -> dict[str, Any]:
    """Two heads, 4096 tokens: 128 columns hold 0.75 and 0.5, those of the other prompt 0.25."""
    return {
        "format": "minference_observations",
        "version": 1,
        "model": MODEL,
        "machine": MACHINE,
        "prompts": [{"name": "text, part 1", "length": 4096}, {"name": "part 2", "length": 4096}],
        "columns": [1, 128, 4096],
        "heads": [
            {
                "layer": 0,
                "head": head,
                "coverage": coverage,
                "reused": [0.0, 0.25, 1.0],
                "distances": [1, 2, 3, 2],
            }
            for head, coverage in enumerate(([0.5, 0.75, 1.0], [0.125, 0.5, 1.0]))
        ],
    }
