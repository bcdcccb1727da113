"""Prints the figures the project promises for the CPU and writes them as JSON.

    python -m bench                  all of them, some minutes
    python -m bench dense sparse     only these
    python -m bench --json FILE      also as JSON ("auto": bench/results/cpu/<date>-<commit>.json)

Each section measures ours and torch's scaled_dot_product_attention in turns in one process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import attention, machine, memory, model

Rows = list[dict[str, object]]

SECTIONS: dict[str, Callable[[int], Rows]] = {
    "dense": attention.dense,
    "short": attention.short,
    "sparse": attention.sparse,
    "scaling": attention.scaling,
    "memory": memory.million_tokens,
    "model": model.short,
    "peak": model.peak_memory,
}


def print_table(title: str, rows: Rows) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    print(f"\n{title}")
    for line in [columns, *cells]:
        print(
            "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        )


def main() -> int:
    sections = "\n".join(f"  {name:8} {section.__doc__}" for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__.split("\n")[0],
        epilog=f"sections (default: all, some minutes; memory needs 6 GiB):\n{sections}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (default: 7)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own)")
    parser.add_argument("--json", metavar="FILE", help="write the rows; 'auto' names the file")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(
            f"SECTION is {', '.join(sorted(unknown))}; it must be of {', '.join(SECTIONS)}"
        )
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; it must be >= 1")
    if options.threads is not None:
        torch.set_num_threads(options.threads)

    where = machine.describe()
    print("  ".join(f"{key}: {value}" for key, value in where.items()))
    results: dict[str, object] = {"machine": where}
    with torch.inference_mode():
        for name in options.sections or SECTIONS:
            rows = SECTIONS[name](options.rounds)
            print_table(f"{name}: {SECTIONS[name].__doc__}", rows)
            results[name] = rows
    if options.json:
        path = Path(options.json)
        if options.json == "auto":
            folder = Path(__file__).parent / "results" / "cpu"
            path = folder / f"{where['date']}-{where['commit']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\nwritten: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
