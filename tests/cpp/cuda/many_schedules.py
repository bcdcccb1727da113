#!/usr/bin/env python3
"""Runs attention under the emulator in many orders of its warps, blocks and asynchronous copies.

    many_schedules.py PTXSIM ATTENTION_CUDA_TEST [COUNT]

Each of COUNT (100) seeds holds back other warps, blocks and copies. A warp that waits for what
never comes is a dead-lock, which the emulator reports; a slot that is taken too early gives wrong
results. Stops at the first seed that fails and says which.
"""

from __future__ import annotations

import subprocess
import sys


def main(ptxsim: str, program: str, count: int) -> int:
    for seed in range(1, count + 1):
        # One thread: CMakeLists.txt says why.
        options = ["--random", str(seed), "--memcheck", "--werror", "--threads", "1"]
        command = [ptxsim, *options, "--", program, "schedules"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            print(f"seed {seed}: {' '.join(command)}\n{result.stdout}{result.stderr}")
            return 1
    print(f"{count} schedules: no dead-lock, right results")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 100))
