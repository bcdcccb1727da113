#!/usr/bin/env python3
"""Counts the memory accesses of index and plan under the emulator and fails if there are too many.

    work_counts.py PTXSIM LARGE_CUDA_TEST

Runs layers of 16K tokens (`large_cuda_test work`) with ptxsim's statistics on one thread, where
they are exact, and prints a table. Rules:

* each pass of the estimation reads K once per kv head (4 query heads share it), q once per block;
* K, q and rows to gather or pool are read in whole sectors of 32 bytes, once, next to which
  everything else is little;
* of all global accesses at most 5 % of the sectors are more than their bytes fill;
* bank conflicts cost at most 2 % of the cycles that shared memory accesses take, in every kernel.
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


def short_name(name: str) -> str:
    """RowStats of estimate<..., RowStats>(...), build_plan of ...::build_plan(...)."""
    head = name.split("(minference", 1)[0]
    passes = re.search(r"\b(RowStats|LineSums)\b", head)
    return passes.group(1) if passes else re.split(r"::|\s", head.split("<", 1)[0])[-1]


class Kernel:
    """Sums over the launches of one kernel."""

    def __init__(self, stats: dict[str, Any]) -> None:
        memory, shared, copies = stats["global"], stats["shared"], stats["async"]
        self.blocks = stats["ctas"]
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


def run(ptxsim: str, program: str) -> tuple[dict[str, int], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stats.json"
        command = [ptxsim, "--stats", str(file), "--threads", "1", "--", program, "work"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"{program} failed:\n{result.stdout}{result.stderr}")
        return json.loads(result.stdout), json.loads(file.read_text())["kernels"]


def main(ptxsim: str, program: str) -> int:
    needed, stats = run(ptxsim, program)
    kernels = {}
    for entry in stats:
        kernels[short_name(entry["name"])] = Kernel(entry)
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
    for failure in failures:
        print(f"too much work: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
