#!/usr/bin/env python3
"""Counts the work of the kernels under the emulator and fails if there is too much.

    work_counts.py PTXSIM LARGE_CUDA_TEST ATTENTION_CUDA_TEST [TOKENS]

ptxsim's statistics, on one thread, where they are exact. Index and plan, of layers of 16K tokens
(`large_cuda_test work`); rules:

* each pass of the estimation reads K once per kv head (4 query heads share it), q once per block;
* K, q and rows to gather or pool are read in whole sectors of 32 bytes, once, next to which
  everything else is little;
* of all global accesses at most 5 % of the sectors are more than their bytes fill;
* bank conflicts cost at most 2 % of the cycles that shared memory accesses take, in every kernel.

Attention, of one head of 128 dimensions (`attention_cuda_test work PATTERN TOKENS DTYPE`), in
bfloat16 by the kernels of both architectures, in float8 by that of sm_90; a table per pattern, and
rules:

* a dense causal head takes at most so many instructions of a warp per 128 x 128 scores that are
  computed: what 4K (sm_80) or 8K (sm_90) tokens take more than half of them, 8,500 and 5,161, which
  is what FlashAttention-3 executes in bfloat16;
* lines in bands that leave out about 90 and 98 %, at 64K tokens (or TOKENS): at least 95 % (sm_80),
  93 and 85 % (sm_90) of the tensor cores' work is for pairs that the plan attends;
* no bank conflicts in the loop over stages: at most 1 cycle per 100 accesses of shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SECTOR = 32
MAX_CONFLICT_SHARE = 0.02
MAX_EXCESS_SECTORS = 0.05
# Of kernels that move K, q and V: bytes of sectors read, over the minimum.
MAX_READ_RATIO = 1.02
MAX_GATHER_RATIO = 1.1  # rows are short: which one to read is 4 bytes for 256

HEAD_DIM = 128
FLOPS_PER_PAIR = 4 * HEAD_DIM  # two products of a multiply and an add each
TILE_PAIRS = 128 * 128
SPARSE_TOKENS = 65536
MAX_ATTENTION_CONFLICTS = 0.01

# Of attention, by architecture and dtype: tokens of the dense head and most instructions per tile;
# least share of useful work of patterns, which is the same with all dtypes.
DENSE = {("sm_80", "bf16"): (4096, 8500), ("sm_90", "bf16"): (8192, 5161)}
DENSE["sm_90", "fp8"] = DENSE["sm_90", "bf16"]
USEFUL = {
    ("sm_80", "bf16"): {"clustered_90": 0.95},
    ("sm_90", "bf16"): {"clustered_90": 0.93, "clustered_98": 0.85},
}
# What the table shows besides: stages without masks, of gathered columns, with masks, alone.
OTHERS = ("a_shape", "verticals", "exact", "isolated")
OTHER_TOKENS = 16384


def short_name(name: str) -> str:
    """RowStats of estimate<..., RowStats>(...), build_plan of ...::build_plan(...)."""
    head = name.split("(minference::cuda", 1)[0]
    passes = re.search(r"\b(RowStats|LineSums)\b", head)
    return passes.group(1) if passes else re.split(r"::|\s", head.split("<", 1)[0])[-1]


class Kernel:
    """Sums over the launches of one kernel."""

    def __init__(self, stats: dict[str, Any]) -> None:
        memory, shared, copies = stats["global"], stats["shared"], stats["async"]
        self.blocks = stats["ctas"]
        self.instructions = stats["warp_instructions"]
        self.tiles = sum(stats["tensor_flops"].values()) / FLOPS_PER_PAIR / TILE_PAIRS
        self.loaded = copies["cp_async_bytes"] + copies["tma_load_bytes"]
        self.read = SECTOR * (memory["load_sectors"] + copies["cp_async_sectors"])
        self.read += copies["tma_load_bytes"]
        self.written = memory["store_bytes"] + copies["tma_store_bytes"]
        self.sectors = memory["load_sectors"] + memory["store_sectors"] + copies["cp_async_sectors"]
        counted = memory["load_bytes"] + memory["store_bytes"] + copies["cp_async_bytes"]
        self.excess = max(0, self.sectors - counted // SECTOR)
        # An ldmatrix reads 8 rows of 16 bytes, one cycle's worth, per 128 bytes.
        self.shared = (
            shared["load_requests"]
            + shared["store_requests"]
            + stats["by_class"].get("atomic", 0)
            + shared["ldmatrix_bytes"] // 128
        )
        self.conflicts = shared["bank_conflict_cycles"] + shared["ldmatrix_conflict_cycles"]

    def conflict_share(self) -> float:
        return float(self.conflicts / self.shared) if self.shared else 0.0


def run(
    ptxsim: str, device: str, program: str, *arguments: str
) -> tuple[dict[str, int], dict[str, Kernel]]:
    """What the program prints, and its kernels by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stats.json"
        options = ["--device", device, "--stats", str(file), "--threads", "1"]
        command = [ptxsim, *options, "--", program, "work", *arguments]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{program} failed:\n{result.stdout}{result.stderr}")
        kernels = json.loads(file.read_text())["kernels"]
        return json.loads(result.stdout), {short_name(k["name"]): Kernel(k) for k in kernels}


def check_attention(
    ptxsim: str, program: str, device: str, dtype: str, sparse_tokens: int
) -> list[str]:
    failures: list[str] = []
    case = f"{device} {dtype}"

    def attend(pattern: str, tokens: int) -> tuple[Kernel, float]:
        """The kernel's counts, and the share of its tensor work that is for attended pairs."""
        needed, kernels = run(ptxsim, device, program, pattern, str(tokens), dtype)
        kernel = kernels["attention_fwd"]
        if kernel.conflict_share() > MAX_ATTENTION_CONFLICTS:
            failures.append(f"{case}, {pattern}: {kernel.conflicts} cycles of bank conflicts")
        useful = needed["attended_pairs"] / TILE_PAIRS / kernel.tiles
        skipped = 1 - needed["attended_pairs"] / needed["causal_pairs"]
        print(
            f"{case:10} {pattern:12} {tokens:6} {skipped:7.1%} {kernel.tiles:8.0f} {useful:6.3f} "
            f"{kernel.instructions / kernel.tiles:12.0f} {kernel.loaded / kernel.tiles / 1024:9.1f}"
        )
        return kernel, useful

    print(f"{'':23} tokens skipped 128x128s useful instructions KB loaded  (per 128x128)")
    tokens, most = DENSE[device, dtype]
    (half, _), (whole, _) = attend("dense", tokens // 2), attend("dense", tokens)
    more = (whole.instructions - half.instructions) / (whole.tiles - half.tiles)
    print(f"{case} dense: {more:.0f} instructions per 128 x 128 more")
    if more > most:
        failures.append(f"{case}, dense: {more:.0f} warp instructions per 128 x 128")
    for pattern, least in USEFUL.get((device, dtype), {}).items():
        _, useful = attend(pattern, sparse_tokens)
        if useful < least:
            failures.append(f"{case}, {pattern}: {useful:.3f} of the work is for attended pairs")
    for pattern in OTHERS if device == "sm_90" else ():
        attend(pattern, OTHER_TOKENS)
    return failures


def check_index(ptxsim: str, program: str) -> list[str]:
    needed, kernels = run(ptxsim, "sm_90", program)
    failures = []
    print(
        f"{'kernel':18} {'read KB':>9} {'written KB':>10} {'excess sectors':>15} {'conflicts':>10}"
    )
    for name, kernel in sorted(kernels.items()):
        excess = kernel.excess / max(1, kernel.sectors)
        print(
            f"{name:18} {kernel.read / 1024:9.0f} {kernel.written / 1024:10.0f} "
            f"{kernel.excess:7} {excess:6.1%} {kernel.conflict_share():10.2%}"
        )
        if kernel.conflict_share() > MAX_CONFLICT_SHARE:
            failures.append(f"{name}: {kernel.conflict_share():.1%} bank conflicts")

    def check_read(name: str, minimum: int, of: str, max_ratio: float = MAX_READ_RATIO) -> None:
        if name not in kernels:
            failures.append(f"{name} was not launched: {sorted(kernels)}")
            return
        kernel = kernels[name]
        print(f"{name}: reads {kernel.read} bytes, {of} are {minimum}")
        if not minimum <= kernel.read <= max_ratio * minimum:
            failures.append(f"{name}: reads {kernel.read} bytes, {of} are {minimum}")

    for name in ("RowStats", "LineSums"):
        queries = kernels[name].blocks * needed["q_bytes_per_block"] if name in kernels else 0
        k_once = f"K once ({needed['k_bytes']}) and q per block"
        check_read(name, needed["k_bytes"] + queries, k_once)
    for name in kernels:
        if name.startswith("gather"):
            rows = "K and V of every vertical"
            check_read(name, needed["gathered_bytes"], rows, MAX_GATHER_RATIO)
        if name.startswith("pool"):
            check_read(name, needed["pooled_bytes"], "K and q of the heads that rank blocks")

    sectors = sum(kernel.sectors for kernel in kernels.values())
    excess = sum(kernel.excess for kernel in kernels.values()) / sectors
    print(f"all: {sectors} sectors, {excess:.2%} more than their bytes fill")
    if excess > MAX_EXCESS_SECTORS:
        failures.append(f"{excess:.1%} of the sectors are more than their bytes fill")
    return failures


def main(ptxsim: str, index: str, attention: str, tokens: int) -> int:
    failures = check_index(ptxsim, index)
    for device, dtype in DENSE:
        failures += check_attention(ptxsim, attention, device, dtype, tokens)
    for failure in failures:
        print(f"too much work: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    tokens_asked = int(sys.argv[4]) if len(sys.argv) == 5 else SPARSE_TOKENS
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], tokens_asked))
