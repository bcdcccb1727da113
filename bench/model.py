"""Whole models through Transformers: attn_implementation "minference" against "sdpa"."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import minference_ext.transformers as integration
import torch
from minference_ext import HeadPattern
from minference_ext.benchmark.memory import peak_increase
from minference_ext.benchmark.timing import compare
from transformers import LlamaConfig, LlamaForCausalLM

Row = dict[str, object]

MEMORY_LENGTH = 32768
CONTENDERS = {  # by the name that a process measures: their label
    "sdpa": "SDPA",
    "minference": "vertical_slash(1000, 6096)",
    "dense": "dense",
    "chunk_mlp": "vertical_slash(1000, 6096), MLP in pieces of 4096",
}


def llama(dtype: torch.dtype, num_heads: int, head_dim: int) -> LlamaForCausalLM:
    """A Llama of random weights: 4 layers, 2 kv heads, hidden_size num_heads * head_dim."""
    torch.manual_seed(0)
    hidden_size = num_heads * head_dim
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=hidden_size,
        intermediate_size=11 * hidden_size // 4,
        num_hidden_layers=4,
        num_attention_heads=num_heads,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=1 << 17,
    )
    model: LlamaForCausalLM = LlamaForCausalLM._from_config(
        config, attn_implementation="sdpa", dtype=dtype
    )
    model.eval()
    return model


def prefill(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    model(input_ids=ids, logits_to_keep=1)


def short(rounds: int) -> list[Row]:
    """prefill of a whole tiny Llama: SDPA's time over ours; wants >= 0.95"""
    rows: list[Row] = []
    for dtype in (torch.bfloat16, torch.float32):
        sdpa, default, small = (llama(dtype, num_heads=4, head_dim=64) for _ in range(3))
        integration.configure(default)
        integration.configure(small, HeadPattern.vertical_slash(30, 800))
        for length in (128, 256, 512, 1024, 2048, 4096):
            ids = torch.randint(1024, (1, length), generator=torch.Generator().manual_seed(1))
            times = compare(
                {
                    "sdpa": partial(prefill, sdpa, ids),
                    "default": partial(prefill, default, ids),
                    "small": partial(prefill, small, ids),
                },
                rounds=3 * rounds,
                seconds_per_run=0.05,
            )
            rows.append(
                {
                    "dtype": str(dtype).removeprefix("torch."),
                    "length": length,
                    "SDPA ms": round(times.median("sdpa") * 1e3, 2),
                    "SDPA / default": round(times.ratio("sdpa", "default"), 2),
                    "SDPA / vs(30, 800)": round(times.ratio("sdpa", "small"), 2),
                }
            )
    return rows


def peak_memory(rounds: int) -> list[Row]:
    """memory of a whole prefill at 32K, over SDPA's: wants <= 1.05"""
    peaks: dict[str, list[int]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):  # what the allocator keeps differs by some percent from run to run
        for name, of in peaks.items():
            done = subprocess.run(
                [sys.executable, "-m", __name__, name],
                cwd=Path(__file__).parent.parent,
                check=True,
                capture_output=True,
                text=True,
            )
            of.append(int(done.stdout))
    baseline = statistics.median(peaks["sdpa"])
    return [
        {
            "method": CONTENDERS[name],
            "prefill MiB": round(statistics.median(of) / 2**20),
            "MiB min-max": f"{min(of) // 2**20}-{max(of) // 2**20}",
            "/ SDPA's": round(statistics.median(of) / baseline, 3),
        }
        for name, of in peaks.items()
    ]


def _print_peak(name: str) -> None:
    """Prints the bytes that a prefill takes at most beyond what was there before it, in a process
    of its own."""
    model = llama(torch.bfloat16, num_heads=8, head_dim=128)
    if name == "dense":
        integration.configure(model, HeadPattern.dense())
    elif name != "sdpa":
        integration.configure(model, dense_fallback=False)
    if name == "chunk_mlp":
        integration.chunk_mlp(model, 4096)
    with torch.inference_mode():
        prefill(model, torch.zeros((1, 256), dtype=torch.long))  # libraries load what they need
        ids = torch.randint(1024, (1, MEMORY_LENGTH), generator=torch.Generator().manual_seed(1))
        peak = peak_increase(partial(prefill, model, ids), model.device)
    if peak is None:
        raise RuntimeError("this system does not let a process restart its peak: /proc/self")
    print(peak)


if __name__ == "__main__":
    _print_peak(sys.argv[1])
