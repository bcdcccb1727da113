"""The program `minference`: what this machine runs, patterns of models, the demo, measurements.

command_line.py says what exit codes and --json mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial

from minference_ext import __version__, demo
from minference_ext.command_line import Parser, run
from minference_ext.paths import cmake_dir, include_dir, lib_dir

from . import bench, eval_command, info, methods, patterns, plot, report, search

PROGRAM = "minference"
EPILOG = """examples:
  minference info                         # what this machine runs, and why
  minference demo --length 8192           # sparse against dense prefill, with pictures
  minference patterns show patterns.json --plot patterns.png
  minference search --model retrieval --length 4096 --budget 128,512 --out patterns.json
  minference bench attention --lengths 1024,4096,16384 --plot times.png
  minference eval niah --model retrieval --methods 'dense,vertical_slash(100,16)' --plot niah.png
  minference plot attention --model retrieval --layer 1 --head 6 --out map.png
  minference report patterns.search.json eval.json --out report.html
  cmake -B build -Dminference_DIR="$(minference --cmake-dir)"

exit codes: 0; 1 what was asked for failed; 2 wrong arguments; 130 after Ctrl-C"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command. Errors are one sentence on stderr."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    return run(PROGRAM, partial(command, arguments))


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Sparse attention for the prefill of long prompts.",
        epilog=EPILOG,
    )
    printed = {
        "--version": ("version", f"minference_ext {__version__}"),
        "--cmake-dir": ("folder of the CMake package, for minference_DIR", cmake_dir()),
        "--include-dir": ("folder of the C and C++ headers", include_dir()),
        "--lib-dir": ("folder of libminference.so.0", lib_dir()),
    }
    for option, (content, text) in printed.items():
        parser.add_argument(
            option, action="version", version=str(text), help=f"print the {content}"
        )
    commands = parser.add_subparsers(metavar="command", required=True)
    info.add_command(commands)
    _add_demo(commands)
    patterns.add_command(commands)
    methods.add_command(commands)
    bench.add_command(commands)
    plot.add_command(commands)
    report.add_command(commands)
    eval_command.add_command(commands)
    search.add_command(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    program = f"{PROGRAM} demo"
    parser = commands.add_parser(
        "demo",
        help="sparse against dense prefill of a prompt with needles",
        description=demo.DESCRIPTION,
        epilog=demo.EPILOG.format(prog=program),
    )
    demo.add_arguments(parser)
    parser.set_defaults(command=partial(demo.execute, parser))
