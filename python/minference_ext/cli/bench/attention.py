"""minference bench attention: patterns against PyTorch's attention, by length, on the CPU."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial

import torch

from minference_ext.benchmark import attention
from minference_ext.benchmark.attention import DENSE, Row
from minference_ext.benchmark.crossover import crossovers
from minference_ext.benchmark.inputs import Shape
from minference_ext.benchmark.machine import describe
from minference_ext.command_line import (
    DTYPES,
    STDOUT,
    Failure,
    Parser,
    add_json,
    add_threads,
    at_least,
    png_file,
    table,
    threads,
    write_json,
)
from minference_ext.pattern_text import parse_patterns
from minference_ext.patterns import HeadPattern
from minference_ext.plots import draw_times
from minference_ext.report.pictures import curves

from .report import crossovers_text, lengths_of, three_digits

LENGTHS = "1024,2048,4096,8192,16384,32768"
PATTERNS = (
    "dense,a_shape(1024,4096),vertical_slash(1000,6096),vertical_slash(100,800),"
    "vertical_slash(3500,100)"
)
EPILOG = """Each pattern runs in all heads, its estimation included, against PyTorch's dense
scaled_dot_product_attention (SDPA). Contenders take turns, one run of each per round, after two
that do not count; a time is the median of the rounds, a speed-up the median of their ratios.

q and k have the structure of real prompts: a mean query and a mean key per head, turned by RoPE,
give diagonals in bands, near the query and at two far distances, 204 keys are columns that all
queries read, and every token adds noise. Random tensors would have no lines to find: diagonals
would come out scattered and cover nearly everything.

A pattern's crossover is the length from which on it is at least 5% faster than all dense attention
that was measured: SDPA, and "dense" if it is among the patterns.

examples:
  minference bench attention
  minference bench attention --lengths 4096,32768 --patterns 'dense,vertical_slash(1000,6096)'
  minference bench attention --dtype float32 --rounds 3 --plot times.png --json times.json"""


def add_subject(subjects: argparse._SubParsersAction[Parser]) -> None:
    subject = subjects.add_parser(
        "attention",
        help="patterns against PyTorch's dense attention, by length",
        description="Attention with patterns against PyTorch's dense attention, by length.",
        epilog=EPILOG,
    )
    subject.add_argument(
        "--lengths",
        type=lengths_of(2),
        default=LENGTHS,
        metavar="N,N",
        help=f"tokens (default: {LENGTHS})",
    )
    subject.add_argument(
        "--patterns",
        type=_patterns,
        default=PATTERNS,
        metavar="P,P",
        help=f"each with its sizes, all in quotes (default: {PATTERNS})",
    )
    subject.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="default: bfloat16")
    subject.add_argument("--heads", type=at_least(1), default=8, help="query heads (default: 8)")
    subject.add_argument(
        "--kv-heads", type=at_least(1), default=2, help="a divisor of --heads (default: 2)"
    )
    subject.add_argument(
        "--head-dim", type=at_least(8), default=128, help="a multiple of 8 (default: 128)"
    )
    add_threads(subject)
    subject.add_argument("--rounds", type=at_least(1), default=5, help="timed runs (default: 5)")
    subject.add_argument("--plot", type=png_file, metavar="FILE.png", help="draw the times there")
    add_json(subject)
    subject.set_defaults(command=partial(_attention, subject))


def _patterns(text: str) -> list[HeadPattern]:
    try:
        return list(dict.fromkeys(parse_patterns(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _attention(parser: Parser, arguments: argparse.Namespace) -> int:
    if arguments.heads % arguments.kv_heads:
        parser.error(
            f"--heads is {arguments.heads}; it must be a multiple of --kv-heads "
            f"({arguments.kv_heads})"
        )
    if arguments.head_dim % 8 or arguments.head_dim > 256:
        parser.error(f"--head-dim is {arguments.head_dim}; it must be a multiple of 8 up to 256")
    with threads(arguments.threads), torch.inference_mode():
        return _measure(arguments)


def _measure(arguments: argparse.Namespace) -> int:
    shape = Shape(arguments.heads, arguments.kv_heads, arguments.head_dim)
    rows: list[Row] = []
    try:
        machine = describe()
        for of_length in attention.measure(
            arguments.lengths,
            arguments.patterns,
            shape,
            DTYPES[arguments.dtype],
            rounds=arguments.rounds,
        ):
            rows += of_length
            print(f"measured: {of_length[0].length} tokens", file=sys.stderr, flush=True)
    except (RuntimeError, ValueError) as error:
        raise Failure(str(error)) from error
    points = crossovers(rows, DENSE)
    subject = (
        f"{shape.num_heads_q} query heads, {shape.num_heads_kv} kv heads, "
        f"head_dim {shape.head_dim}, {arguments.dtype}"
    )
    if arguments.json != STDOUT:
        print(
            f"{machine['cpu']}, threads: {machine['threads']}, kernel: {machine['kernel']}, "
            f"torch {machine['torch']}\n{subject}\n\n{_rows_text(rows)}\n\n"
            f"{_crossovers_text(points, arguments.lengths[0])}"
        )
    if arguments.plot is not None:
        where = f"{machine['cpu']}, threads: {machine['threads']}"
        title = f"Time of attention in one layer: {subject}\n{where}"
        draw_times(arguments.plot, curves(rows, points), title)
        if arguments.json != STDOUT:
            print(f"\nPicture: {arguments.plot}")
    record = {
        "machine": machine,
        "shape": asdict(shape),
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "rows": [asdict(row) for row in rows],
        "crossovers": points,
    }
    write_json(arguments.json, record)
    return 0


def _rows_text(rows: list[Row]) -> str:
    cells = [("tokens", "method", "ms", "speed-up", "attended", "computed", "dense heads")]
    for row in rows:
        is_sdpa = row.dense_heads is None
        cells.append(
            (
                str(row.length),
                row.method,
                three_digits(row.median_seconds * 1e3),
                f"{row.speedup:.2f}x",
                f"{row.attended_share:.1%}",
                # The last tile of a dense row reaches beyond the diagonal.
                f"{min(1.0, row.computed_share):.1%}",
                "-" if is_sdpa else str(row.dense_heads),
            )
        )
    return table(cells, num_left=2)


def _crossovers_text(points: dict[str, float | None], shortest: int) -> str:
    text = crossovers_text(points, shortest, "dense attention")
    return text or "Dense attention only: name a sparse pattern, too."
